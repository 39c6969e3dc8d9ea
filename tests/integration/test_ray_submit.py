"""`ray job submit` from a plain checkout to a Ray head with token authentication, and nothing left of it afterwards."""

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from ldznet.builtin_models import WEIGHTS
from pipeline.cache.manifest import find_manifest
from pipeline.object_store.opening import open_store
from pipeline.recipe_file import load_recipe
from pipeline.services.loopback_server import http_status
from pipeline.services.ports import is_free
from pipeline.services.ray_head import RayHead

pytestmark = pytest.mark.long  # `make test-cluster`

CHECKOUT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
PATIENCE_S = 180
LARGEST_UPLOAD_MB = 8  # beside the weights of the models that come with the package; never .venv


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running Ray head: where jobs go, with which environment, and where it keeps its files."""

    address: str
    token: str
    environment: dict[str, str]
    folder: Path

    def submit(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAY, "job", "submit", "--address", self.address, *words],
            cwd=CHECKOUT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )


@pytest.fixture(scope="module")
def head(seaweedfs: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    jobs = seaweedfs.environment() | {"OMP_NUM_THREADS": "1"}
    with RayHead(folder=folder, jobs=jobs, cpus=2) as server:
        access = server.environment()
        family = psutil.Process(server.pid).children(recursive=True)
        ports = listening(family)
        assert int(server.address.rpartition(":")[2]) in ports
        yield Head(
            address=server.address,
            token=access["RAY_AUTH_TOKEN"],
            environment=os.environ | access | {"OMP_NUM_THREADS": "1"},
            folder=(folder / "sessions").resolve(),
        )
    left = [process for process in family if is_alive(process)]
    for process in left:
        process.kill()
    assert [process.pid for process in left] == [], "processes outlived the head"
    assert [port for port in ports if not is_free(port)] == []
    assert not (folder / "sessions").exists()


def listening(processes: list[psutil.Process]) -> set[int]:
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray's own come and go
            found |= {
                each.laddr.port
                for each in process.net_connections("inet")
                if each.status == psutil.CONN_LISTEN
            }
    return found


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_submitted_precompute_fills_the_cache(
    head: Head, small_recipe: Callable[..., Path], s3_url: str
) -> None:
    recipe, overrides = small_recipe(), [f"cache.url={s3_url}", "sets.train.draws=1"]
    done = head.submit("--working-dir", ".", "--", "python", "-m", "jobs.precompute", str(recipe), *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    store, loaded = open_store(s3_url), load_recipe(recipe, overrides)
    samples = {"train": 36, "val": 9}
    for name, expected in samples.items():
        manifest = find_manifest(store, loaded.request_digest(name))
        assert manifest is not None
        assert manifest.samples + manifest.filtered == expected
    # What was uploaded is the checkout without what git ignores.
    (package,) = head.folder.glob("1/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    uploaded = {path.relative_to(package).parts[0] for path in package.rglob("*") if path.is_file()}
    assert {"jobs", "pipeline", "ldznet", "pyproject.toml"} <= uploaded
    assert uploaded.isdisjoint({".venv", "runs", ".git", ".mypy_cache", ".hypothesis"})
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    weights = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert 0 < size - weights < LARGEST_UPLOAD_MB * 1e6


def test_the_users_mistake_reaches_the_submitter(head: Head, small_recipe: Callable[..., Path]) -> None:
    words = ["python", "-m", "jobs.precompute", str(small_recipe()), "cache.wrokers=2"]
    done = head.submit("--working-dir", ".", "--", *words)
    assert done.returncode != 0
    assert "unknown key 'cache.wrokers': did you mean 'workers'?" in done.stdout + done.stderr


def test_another_token_is_refused(head: Head) -> None:
    wrong = secrets.token_hex(32)
    status = [
        http_status(head.address, "/api/jobs/", {"Authorization": f"Bearer {token}"})
        for token in (head.token, wrong)
    ]
    assert status[0] == 200
    assert status[1] in {401, 403}
    done = head.submit("--", "echo", "let in", RAY_AUTH_TOKEN=wrong)
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert "let in" not in told.replace("echo 'let in'", "")
    assert "403" in told or "401" in told or "nvalid" in told
