"""`ldznet submit` to a closed Ray cluster of two nodes, with a real S3 server and MLflow; no secret is left."""

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from ldznet.builtin_models import WEIGHTS
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.services.mlflow_server import MlflowServer
from pipeline.services.ray_head import RayHead
from pipeline.tracking.client import open_client

pytestmark = pytest.mark.long  # `make test-cluster`

CHECKOUT = Path(__file__).parents[2]
LDZNET = [sys.executable, "-m", "jobs.cli"]
# What a shell starts in the background ignores it, and so does all that comes of that: these tests too.
HEARING_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from jobs.cli import main
sys.exit(main(sys.argv[1:]))
"""
PATIENCE_S = 400
# In nobody's way, and nowhere to be found afterwards. Made anew: this file goes to the cluster too.
PLANTED = {
    "HF_TOKEN": f"hf_{secrets.token_urlsafe(24)}",
    "WAREHOUSE_PASSWORD": f"word-{secrets.token_hex(8)}",
    "SERVICE_API_KEY": secrets.token_urlsafe(30),
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Services as `ldznet services` starts them, a recipe for them, and everything that was printed."""

    environment: dict[str, str]
    recipe: Path
    overrides: list[str]
    folder: Path  # of servers and their logs
    sessions: Path  # Ray's
    objects: ObjectStore
    s3_folder: Path
    mlflow_uri: str
    hidden: dict[str, list[bytes]]  # variable -> forms in which its value may lie about
    said: list[str] = field(default_factory=list)

    def submit(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("submit", *words, **environment)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*LDZNET, *words],
            cwd=CHECKOUT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        self.said.append(done.stdout + done.stderr)
        return done

    def job(self, name: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.submit(name, str(self.recipe), *self.overrides, *more, **environment)

    def statuses(self) -> dict[str, str]:
        """Submission id -> status."""
        lines = self.submit("--status").stdout.splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}

    def await_status(self, name: str, wanted: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while (status := self.statuses()[name]) != wanted:
            assert time.monotonic() < until, status
            time.sleep(0.2)

    @property
    def output(self) -> Path:
        return self.recipe.parent / "run"

    def mlflow(self) -> Any:
        return open_client(self.mlflow_uri)


@pytest.fixture(scope="module")
def cluster(
    seaweedfs: Any, tmp_path_factory: pytest.TempPathFactory, small_recipe_in: Callable[..., Path]
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    place = f"s3://{seaweedfs.bucket}/{uuid4().hex}"
    recipe = small_recipe_in(
        tmp_path_factory.mktemp("submit"),
        tracking={"experiment": "submitted", "system_metrics": False},
        train={"steps": 2, "batch_size": 8, "lr": 1e-3, "workers": 2},
    )
    store = seaweedfs.environment()
    with ExitStack() as stack:
        mlflow = stack.enter_context(
            MlflowServer(folder=folder / "mlflow", artifacts=f"{place}/mlflow", store=store)
        )
        access = mlflow.environment()
        password = access["MLFLOW_TRACKING_PASSWORD"]
        # The password in the URI, as some have it; nodes find all this set, as by a platform's secrets.
        host = access["MLFLOW_TRACKING_URI"].removeprefix("http://")
        uri = f"http://{access['MLFLOW_TRACKING_USERNAME']}:{quote(password)}@{host}"
        found_set = store | PLANTED | {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
        ray = stack.enter_context(RayHead(folder=folder / "ray", jobs=found_set, cpus=2, nodes=2))
        token = ray.environment()["RAY_AUTH_TOKEN"]
        yield Cluster(
            environment=os.environ | store | PLANTED | access | ray.environment() | {"OMP_NUM_THREADS": "1"},
            recipe=recipe,
            overrides=[f"cache.url={place}/cache", f"storage={place}/training", "sets.train.draws=1"],
            folder=folder,
            sessions=(folder / "ray" / "sessions").resolve(),
            objects=open_store(place),
            s3_folder=seaweedfs.folder,
            mlflow_uri=uri,
            hidden={
                name: [value.encode(), base64.b64encode(value.encode())]
                for name, value in {
                    **PLANTED,
                    "AWS_SECRET_ACCESS_KEY": store["AWS_SECRET_ACCESS_KEY"],
                    "MLFLOW_TRACKING_PASSWORD": password,
                    "RAY_AUTH_TOKEN": token,
                    "HTTP basic authentication": f"{access['MLFLOW_TRACKING_USERNAME']}:{password}",
                }.items()
            },
        )


@pytest.fixture(scope="module")
def done(cluster: Cluster) -> subprocess.CompletedProcess[str]:
    """The whole flow, once."""
    return cluster.job("pipeline", LDZNET_LOG="INFO")


def only(found: list[Any]) -> Any:
    (one,) = found
    return one


def test_a_dry_run_tells_all_and_sends_nothing(cluster: Cluster) -> None:
    told = cluster.job("pipeline", "--dry-run", "--env", "MODE=quick")
    assert told.returncode == 0, told.stderr
    lines = dict(line.split(maxsplit=1) for line in told.stdout.splitlines())
    assert lines["entrypoint"].startswith("python -m jobs.pipeline submitted/recipe.yaml cache.url=s3://")
    count, size = (int(word.replace(",", "")) for word in lines["files"].split()[::1] if word[0].isdigit())
    assert count > 300
    weights = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert 1e6 < size - weights < 16e6
    assert lines["largest"].startswith("ldznet/weights/")
    assert lines["variables"] == "MODE, LDZNET_SUBMISSION"
    assert len(lines["ldznet.recipe_digest"]) == 64
    assert {"ldznet.request.train", "ldznet.request.val", "ldznet.identity"} <= set(lines)
    assert cluster.statuses() == {}
    assert not list(cluster.sessions.glob("*/session_2*/runtime_resources/working_dir_files/*"))


def test_the_pipeline_ends_with_a_model_and_a_report(
    cluster: Cluster, done: subprocess.CompletedProcess[str]
) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    name = done.stdout.split(":")[0]
    assert f"{name}: SUCCEEDED" in done.stdout
    assert "data:image/" in (cluster.output / "report.html").read_text()
    version = cluster.mlflow().get_model_version_by_alias("small-ldznet", "best")
    experiment = cluster.mlflow().get_experiment_by_name("submitted")
    runs = {run.data.tags["job"]: run for run in cluster.mlflow().search_runs([experiment.experiment_id])}
    assert set(runs) == {"precompute", "train", "evaluate"}
    assert version.run_id == runs["train"].info.run_id
    for run in runs.values():  # a run names its job, the job's log its runs
        assert run.data.tags["ray.submission_id"] == name
        assert f"/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}" in done.stdout
    told = cluster.submit("--status", name).stdout
    assert "ldznet.recipe_digest" in told
    assert "ldznet.request.train" in told
    noted = dict(line.split() for line in told.splitlines()[1:])
    for job, run in runs.items():
        assert noted[f"ldznet.mlflow_run.{job}"].endswith(f"/runs/{run.info.run_id}")
    tags = runs["precompute"].data.tags
    for name in ("train", "val"):
        assert noted[f"ldznet.cache_key.{name}"] == tags[f"cache_key.{name}"]


def test_again_nothing_is_repeated(cluster: Cluster, done: subprocess.CompletedProcess[str]) -> None:
    before = {info.key: info.etag for info in cluster.objects.list("training/")}
    report = (cluster.output / "report.html").read_bytes()
    again = cluster.job("pipeline")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.split(":")[0] == done.stdout.split(":")[0] + "-2"
    assert again.stdout.count("nothing to compute") == 2
    assert "finished before, nothing to train" in again.stdout
    assert "tells of these models on these sets already, nothing to do" in again.stdout
    assert (cluster.output / "report.html").read_bytes() == report
    after = {info.key: info.etag for info in cluster.objects.list("training/")}
    assert {key for key in after if "step-" in key} == {key for key in before if "step-" in key}
    assert len(cluster.mlflow().search_model_versions("name = 'small-ldznet'")) == 1


def test_another_evaluation_is_made(cluster: Cluster, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0
    other = cluster.job("pipeline", "evaluate.bootstrap=30")
    assert other.returncode == 0, other.stdout + other.stderr
    assert "finished before, nothing to train" in other.stdout
    assert "tells of these models on these sets already" not in other.stdout


@pytest.mark.parametrize(("name", "sets"), [("train", {"train", "val"}), ("evaluate", {"val"})])
def test_jobs_that_read_caches_note_their_keys(
    name: str, sets: set[str], cluster: Cluster, done: subprocess.CompletedProcess[str]
) -> None:
    whole = noted_of(cluster, done.stdout.split(":")[0])
    ended = cluster.job(name)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    noted = noted_of(cluster, ended.stdout.split(":")[0])
    keys = {key: value for key, value in noted.items() if key.startswith("ldznet.cache_key.")}
    assert keys == {f"ldznet.cache_key.{one}": whole[f"ldznet.cache_key.{one}"] for one in sets}


def test_the_same_training_is_not_trained_beside_itself(cluster: Cluster) -> None:
    """Another number of ranks changes no result: both would write one folder of checkpoints."""
    waiting = ["sets.train.draws=2", "cache.cpus_per_worker=500"]  # which no node has
    first = cluster.job("pipeline", *waiting, "--no-wait")
    assert first.returncode == 0, first.stdout + first.stderr
    name = first.stdout.split(":")[0]
    other = cluster.job("train", *waiting, "train.workers=1", "--no-wait")
    assert other.returncode == 2
    assert f"{name} runs the same training, s3://" in other.stderr
    assert f"stop it (ldznet submit --stop {name}), or wait for its end" in other.stderr
    cluster.await_status(name, "RUNNING")
    assert cluster.submit("--stop", name).returncode == 0


def test_one_that_runs_is_followed_left_and_stopped(cluster: Cluster, tmp_path: Path) -> None:
    waiting = ["cache.cpus_per_worker=500", "sets.train.draws=2"]  # which no node has
    waiting += ["--working-dir", str(tmp_path)]  # the nodes have the code: a folder in which nothing changes
    first = cluster.job("precompute", *waiting, "--no-wait")
    assert first.returncode == 0, first.stdout + first.stderr
    name = first.stdout.split(":")[0]
    assert f"ldznet submit --attach {name}" in first.stdout
    cluster.await_status(name, "RUNNING")
    same = cluster.job("precompute", *waiting, "--no-wait")
    assert same.stdout.startswith(f"{name}: runs already, nothing was sent")
    other = cluster.job("precompute", *waiting, "--env", "MODE=quick", "--no-wait")
    assert other.returncode == 2
    assert f"{name} runs on this recipe, with other code or options" in other.stderr
    following = subprocess.Popen(
        [sys.executable, "-c", HEARING_CTRL_C, "submit", "--attach", name],
        cwd=CHECKOUT,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert following.stdout is not None
    told = ""
    while "waiting for room" not in told:
        line = following.stdout.readline()
        assert line, told
        told += line
    following.send_signal(signal.SIGINT)
    rest, _ = following.communicate(timeout=PATIENCE_S)
    cluster.said.append(told + rest)
    assert following.returncode == 130
    assert f"left: the job goes on. Come back: ldznet submit --attach {name}" in rest
    assert "Traceback" not in rest
    assert cluster.statuses()[name] == "RUNNING"
    stopped = cluster.submit("--stop", name)
    assert (stopped.returncode, stopped.stdout) == (0, f"{name}: STOPPED\n")
    again = cluster.job("precompute", *waiting, "--no-wait")
    assert again.stdout.startswith(f"{name}-2: submitted")
    cluster.submit("--stop", f"{name}-2")


def test_a_mistake_that_shows_on_the_cluster_is_two(cluster: Cluster) -> None:
    ended = cluster.job("train", "sets.train.draws=7")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "run `ldznet precompute` with the same recipe and overrides first" in ended.stdout
    attached = cluster.submit("--attach", ended.stdout.split(":")[0])
    assert attached.returncode == 2
    assert "run `ldznet precompute`" in attached.stdout


def test_who_lacks_the_token_is_told(cluster: Cluster) -> None:
    ended = cluster.job("train", RAY_AUTH_TOKEN="0" * 64)
    assert ended.returncode == 2
    assert "refuses the token: set RAY_AUTH_MODE=token" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "asked",
    [
        ["--env", "HF_TOKEN"],
        ["--env", f"HARMLESS={PLANTED['WAREHOUSE_PASSWORD']}"],
        [f"data.name={PLANTED['SERVICE_API_KEY']}"],
        ["--working-dir", "FOLDER"],
    ],
    ids=["name", "value", "recipe", "file"],
)
def test_no_secret_is_sent(asked: list[str], cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text(f"use {PLANTED['HF_TOKEN']}")
    before = cluster.statuses()
    ended = cluster.job("train", *(str(tmp_path) if word == "FOLDER" else word for word in asked))
    assert ended.returncode == 2
    assert "Ray" in ended.stderr
    assert cluster.statuses() == before


def test_failing_runs_tell_no_secret(cluster: Cluster) -> None:
    """Refused by the store, without MLflow, and with a recipe that cannot be: here, not on the cluster."""
    wrong = {"AWS_SECRET_ACCESS_KEY": PLANTED["SERVICE_API_KEY"], "RAY_API_SERVER_ADDRESS": ""}
    refused = cluster.run("precompute", str(cluster.recipe), *cluster.overrides, **wrong)
    assert refused.returncode == 2, refused.stderr
    assert "AWS_SECRET_ACCESS_KEY" in refused.stderr
    away = cluster.mlflow_uri.rpartition(":")[0] + ":9"
    unnoted = cluster.run(
        "evaluate",
        str(cluster.recipe),
        *cluster.overrides,
        "evaluate.models=[models:/none@best]",
        MLFLOW_TRACKING_URI=away,
    )
    assert unnoted.returncode == 2
    assert "models:/none@best was not found at http://***@127.0.0.1:9" in unnoted.stderr


def test_no_secret_is_left_anywhere(cluster: Cluster, done: subprocess.CompletedProcess[str]) -> None:
    """Last of all: in what was printed, logged, recorded, stored, and kept by Ray."""
    assert done.returncode == 0
    places = {
        "services": files_below(cluster.folder),
        "Ray": files_below(cluster.sessions),
        "output": files_below(cluster.recipe.parent),
        "S3 server": files_below(cluster.s3_folder),
        "objects": [(info.key, cluster.objects.get(info.key)) for info in cluster.objects.list()],
        "printed": [(f"{number}", text.encode()) for number, text in enumerate(cluster.said)],
        "jobs": [("list", jobs_as_ray_keeps_them(cluster))],
    }
    found = [
        f"{place}, {name}: {secret}"
        for place, contents in places.items()
        for name, content in contents
        for secret, forms in cluster.hidden.items()
        if any(form in content for form in forms)
    ]
    assert found == []
    # What is there is found: the job's id by name, phrases in shards and results.
    name, phrase = done.stdout.split(":")[0].encode(), b"the red box"
    there = {
        "services": name,
        "Ray": name,
        "output": phrase,
        "objects": phrase,
        "printed": name,
        "jobs": name,
    }
    for place, word in there.items():
        assert any(word in content for _, content in places[place]), place


def noted_of(cluster: Cluster, name: str) -> dict[str, str]:
    """A job's metadata."""
    return dict(line.split() for line in cluster.submit("--status", name).stdout.splitlines()[1:])


def files_below(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(path), path.read_bytes()) for path in folder.rglob("*") if path.is_file()]


def jobs_as_ray_keeps_them(cluster: Cluster) -> bytes:
    """All that the head tells of its jobs: entrypoints, runtime environments, metadata, messages."""
    script = (
        "import json, os, urllib.request\n"
        "asked = urllib.request.Request(os.environ['RAY_API_SERVER_ADDRESS'] + '/api/jobs/',\n"
        "    headers={'Authorization': 'Bearer ' + os.environ['RAY_AUTH_TOKEN']})\n"
        "print(urllib.request.urlopen(asked).read().decode())\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], env=cluster.environment, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(told)
    return told.encode()
