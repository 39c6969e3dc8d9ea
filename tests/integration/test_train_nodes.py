"""Training on several real Ray nodes: two nodes of one rank are one node of two, and a killed node ends nothing."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from integration.node_training import read
from integration.ray_nodes import PATIENCE_S, RayNodes, wait_for

from pipeline.services.child import last_lines

pytestmark = pytest.mark.long  # `make test-cluster`

STEPS, EVERY, STRUCK_AFTER = 12, 4, 6


class Training:
    """A training on the cluster, seen from outside."""

    def __init__(self, cluster: RayNodes, folder: Path, words: list[str], *, pause: bool = False) -> None:
        self._folder, self._log = folder, folder / "driver.log"
        folder.mkdir()
        if pause:
            (folder / "wait-after").write_text(str(STRUCK_AFTER))
        self._driver = cluster.drive("integration.node_training", *words, f"output={folder}", log=self._log)

    def wait_for_the_blow(self) -> None:
        """Until it pauses."""

        def there() -> bool:
            assert self._driver.poll() is None, last_lines(self._log, 60)
            return any(one["step"] == STRUCK_AFTER for one in read(self._folder / "losses.jsonl"))

        wait_for(there)

    def go_on(self) -> None:
        (self._folder / "go").touch()

    def end(self) -> dict[int, float]:
        """The loss of every step; of those that were taken again, the last time."""
        assert self._driver.wait(PATIENCE_S) == 0, last_lines(self._log, 60)
        return {one["step"]: one["loss"] for one in read(self._folder / "losses.jsonl")}

    @property
    def starts(self) -> list[list[str]]:
        """The nodes of the ranks, start by start."""
        told = read(self._folder / "starts.jsonl")
        starts: list[list[str]] = []
        while told:
            starts.append(sorted(one["node"] for one in told[: told[0]["ranks"]]))
            del told[: told[0]["ranks"]]
        return starts

    @property
    def taken(self) -> list[tuple[int, int]]:
        """Step and ranks, in the order in which they were taken."""
        return [(one["step"], one["ranks"]) for one in read(self._folder / "losses.jsonl")]


@pytest.fixture(scope="module")
def words(
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe_in: Callable[..., Path],
    precompute_here: Callable[..., None],
) -> list[str]:
    """A recipe whose features are there."""
    train = {
        "steps": STEPS,
        "batch_size": 8,
        "lr": 1e-3,
        "workers": 2,
        "checkpoint_every": EVERY,
        "max_failures": 2,
    }
    recipe = small_recipe_in(tmp_path_factory.mktemp("recipe"), train=train)
    overrides = ["sets.train.draws=1", "validate_on=null"]
    precompute_here(recipe, *overrides)
    return [str(recipe), *overrides]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head on which nothing is computed, and a node for one rank; more nodes are the tests' own."""
    with RayNodes(tmp_path_factory.mktemp("cluster")) as nodes:
        nodes.start_head(cpus=0, dashboard=True)
        yield nodes


@pytest.fixture(scope="module")
def on_one_node(
    cluster: RayNodes, words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, float]:
    """The losses of two ranks on one node, which is gone then; two nodes for one rank each are there."""
    node = cluster.add_node(cpus=2)
    training = Training(cluster, tmp_path_factory.mktemp("one") / "run", words)
    losses = training.end()
    assert list(losses) == list(range(1, STEPS + 1))
    ((first, second),) = training.starts
    assert first == second
    cluster.kill(node)
    for _ in range(2):
        cluster.add_node(cpus=1)
    return losses


def test_two_nodes_of_one_rank_are_one_node_of_two(
    cluster: RayNodes, words: list[str], on_one_node: dict[int, float], tmp_path: Path
) -> None:
    training = Training(cluster, tmp_path / "run", [*words, "train.cluster.placement=STRICT_SPREAD"])
    assert training.end() == on_one_node  # bit for bit
    ((first, second),) = training.starts
    assert first != second


def test_a_killed_node_leaves_the_others_training(
    cluster: RayNodes, words: list[str], on_one_node: dict[int, float], tmp_path: Path
) -> None:
    """Two ranks or one: one is left, and takes the whole batch."""
    training = Training(cluster, tmp_path / "run", [*words, "train.workers={min: 1, max: 2}"], pause=True)
    training.wait_for_the_blow()
    cluster.kill(cluster.nodes[-1])
    training.go_on()
    losses = training.end()
    (one, another), *_, (left,) = training.starts
    assert one != another
    assert left in {one, another}
    taken = training.taken
    assert taken[:STRUCK_AFTER] == [(step, 2) for step in range(1, STRUCK_AFTER + 1)]
    resumed = [step for step, ranks in taken if ranks == 1]
    assert resumed == list(range(EVERY + 1, STEPS + 1))  # from the last checkpoint
    assert list(losses) == list(range(1, STEPS + 1))
    before = [losses[step] == on_one_node[step] for step in range(1, EVERY + 1)]
    assert all(before)
    worst = max(abs(losses[step] / on_one_node[step] - 1) for step in losses)
    assert worst < 1e-4  # one rank adds in another order than two
    sys.stdout.write(f"2 ranks, then 1: losses within {worst:.1e} of those of 2 ranks\n")


@pytest.mark.long
def test_a_node_that_joins_replaces_a_killed_one(
    cluster: RayNodes, words: list[str], on_one_node: dict[int, float], tmp_path: Path
) -> None:
    """Two ranks, no more and no fewer: they wait for room."""
    while len(cluster.nodes) < 3:
        cluster.add_node(cpus=1)
    training = Training(cluster, tmp_path / "run", words, pause=True)
    training.wait_for_the_blow()
    cluster.kill(cluster.nodes[-1])
    training.go_on()
    cluster.add_node(cpus=1)
    assert training.end() == on_one_node  # bit for bit
    first, *_, last = training.starts
    assert first != last


@pytest.mark.long
def test_a_node_that_joins_is_taken_in(
    cluster: RayNodes, words: list[str], on_one_node: dict[int, float], tmp_path: Path
) -> None:
    """One rank, then two, from the last checkpoint."""
    while len(cluster.nodes) > 2:
        cluster.kill(cluster.nodes[-1])
    options = ["train.workers={min: 1, max: 2}", "train.cluster.resize_seconds=3"]
    training = Training(cluster, tmp_path / "run", [*words, *options], pause=True)
    training.wait_for_the_blow()
    cluster.add_node(cpus=1)
    wait_for(lambda: len(training.starts) > 1)
    training.go_on()
    losses = training.end()
    assert [len(nodes) for nodes in training.starts] == [1, 2]
    assert training.taken[-1] == (STEPS, 2)
    assert max(abs(losses[step] / on_one_node[step] - 1) for step in losses) < 1e-4
