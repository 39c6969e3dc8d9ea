"""Precompute on several real Ray nodes: the same bytes on 1, 2 and 4, nodes that join and nodes that are killed."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from integration.ray_nodes import PATIENCE_S, RayNodes, wait_for

from pipeline.object_store.opening import open_store
from pipeline.services.child import last_lines

pytestmark = pytest.mark.long  # `make test-cluster`

ACTOR = "ray::ShardWorker"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, small_recipe_in: Callable[..., Path]) -> Path:
    return small_recipe_in(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, seaweedfs: Any) -> Iterator[RayNodes]:
    """A head of one slot; nodes are the tests' own."""
    with RayNodes(tmp_path_factory.mktemp("cluster")) as nodes:
        nodes.start_head(cpus=1)
        yield nodes


def objects(url: str) -> dict[str, str]:
    """Every object of a cache by content; but its own URL and times, which lists of shards and leases hold."""
    named = (info for info in open_store(url).list() if not info.key.startswith(("requests/", "leases/")))
    return {info.key: info.etag for info in named if not info.key.endswith(".shards.txt")}


def receipts(url: str) -> list[str]:
    return [info.key for info in open_store(url).list() if "/receipts/" in info.key]


@pytest.fixture(scope="module")
def words(recipe: Path) -> list[str]:
    """Many draws, so that a run takes long enough for nodes to come and go."""
    return [str(recipe), "sets.train.draws=12"]


@pytest.fixture(scope="module")
def on_one_node(cluster: RayNodes, words: list[str], seaweedfs: Any, tmp_path_factory: Any) -> dict[str, str]:
    url = f"s3://{seaweedfs.bucket}/{uuid4().hex}"
    log = tmp_path_factory.mktemp("one") / "driver.log"
    told = cluster.run("jobs.precompute", *words, f"cache.url={url}", log=log)
    assert f"in {len(receipts(url))} shards with up to 1 workers" in told
    return objects(url)


def at_work(cluster: RayNodes) -> set[str]:
    """Names of the nodes that have an actor."""
    return {node.name for node in cluster.nodes if cluster.workers(node, ACTOR)}


def end_of(driver: Any, log: Path) -> str:
    """What a driver told, which ended well."""
    assert driver.wait(PATIENCE_S) == 0, last_lines(log, 40)
    return log.read_text(errors="replace")


def test_a_job_waits_for_the_accelerator_it_names(
    cluster: RayNodes, words: list[str], on_one_node: dict[str, str], s3_url: str, tmp_path: Path
) -> None:
    """Two nodes; the head, which has room but not the accelerator, computes nothing."""
    log = tmp_path / "driver.log"
    driver = cluster.drive(
        "jobs.precompute", *words, f"cache.url={s3_url}", "cache.accelerator=A100", "cache.workers=2", log=log
    )
    waits = "waiting for room for workers on the cluster: each takes 1 CPUs on A100"
    cluster.while_running(driver, log, lambda: waits in log.read_text())
    node = cluster.add_node(cpus=1, resources={"accelerator_type:A100": 1})
    cluster.while_running(driver, log, lambda: receipts(s3_url))
    assert at_work(cluster) <= {node.name}
    end_of(driver, log)
    assert objects(s3_url) == on_one_node


def test_nodes_that_join_are_taken_in(
    cluster: RayNodes, words: list[str], on_one_node: dict[str, str], s3_url: str, tmp_path: Path
) -> None:
    """Two nodes, then four; asked for are more workers than there is ever room for.

    Workers are held up until all others are at work: nobody is to take all shards before a node is up.
    """
    while len(cluster.nodes) > 2:
        cluster.kill(cluster.nodes[-1])
    while len(cluster.nodes) < 2:
        cluster.add_node(cpus=1)
    log = tmp_path / "driver.log"
    driver = cluster.drive(
        "jobs.precompute", *words, f"cache.url={s3_url}", "cache.workers={min: 1, max: 8}", log=log
    )
    cluster.while_running(driver, log, lambda: receipts(s3_url))
    held = [worker for node in cluster.nodes for worker in cluster.workers(node, ACTOR)]
    for worker in held:
        worker.suspend()
    for _ in range(2):
        node = cluster.add_node(cpus=1)
        at_work = partial(cluster.workers, node, f"{ACTOR}.commit")
        (worker,) = cluster.while_running(driver, log, at_work)
        worker.suspend()
        held.append(worker)
    for worker in held:
        worker.resume()
    end_of(driver, log)
    assert objects(s3_url) == on_one_node


def test_a_killed_node_costs_nothing_but_time(
    cluster: RayNodes, words: list[str], on_one_node: dict[str, str], s3_url: str, tmp_path: Path
) -> None:
    """Four nodes, then three. What the victim is at it will not end: it is held up first."""
    while len(cluster.nodes) < 4:
        cluster.add_node(cpus=1)
    log = tmp_path / "driver.log"
    driver = cluster.drive("jobs.precompute", *words, f"cache.url={s3_url}", "cache.workers=4", log=log)
    victim = cluster.nodes[2]
    at_work = partial(cluster.workers, victim, f"{ACTOR}.commit")
    for worker in cluster.while_running(driver, log, at_work):
        worker.suspend()
    cluster.while_running(driver, log, lambda: receipts(s3_url))  # of the others
    cluster.kill(victim)
    struck_after = len(receipts(s3_url))
    told = end_of(driver, log)
    assert "a worker was lost at shard" in told
    assert objects(s3_url) == on_one_node
    sys.stdout.write(
        f"node killed after {struck_after} of {len(receipts(s3_url))} shards: 0 lost, 0 duplicated\n"
    )


@pytest.mark.long
def test_after_the_head_is_lost_submitting_again_completes_the_rest(
    cluster: RayNodes, words: list[str], on_one_node: dict[str, str], s3_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "driver.log"
    driver = cluster.drive("jobs.precompute", *words, f"cache.url={s3_url}", "cache.workers=2", log=log)
    cluster.while_running(driver, log, lambda: receipts(s3_url))
    head, *others = cluster.nodes
    held = [worker for node in others for worker in cluster.workers(node, ACTOR)]
    for worker in held:
        worker.suspend()
    cluster.kill(head)
    driver.kill()  # it ran on the head
    driver.wait()
    for worker in held:
        worker.resume()
    for node in others:  # a node that has lost its head goes by itself
        wait_for(lambda: node.server.exit_code() is not None)  # noqa: B023 - called at once
        cluster.kill(node)
    standing = len(receipts(s3_url))
    assert not [info.key for info in open_store(s3_url).list("requests/")]
    cluster.start_head(cpus=1)
    again = tmp_path / "again.log"
    told = cluster.run("jobs.precompute", *words, f"cache.url={s3_url}", log=again)
    assert objects(s3_url) == on_one_node
    total = len(receipts(s3_url))
    assert f"in {total - standing} shards with" in told
    sys.stdout.write(
        f"head lost after {standing} of {total} shards: {total - standing} computed by the next job\n"
    )
