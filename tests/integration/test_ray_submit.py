"""`ray job submit` from a plain checkout to a Ray head with token authentication, and nothing left of it afterwards."""

import http.client
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.cache.manifest import find_manifest
from pipeline.object_store.opening import open_store
from pipeline.recipe_file import load_recipe
from pipeline.services.child import ChildServer, last_lines
from pipeline.services.ports import LOOPBACK, free_ports, is_free

pytestmark = pytest.mark.long  # `make test-cluster`

CHECKOUT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
PATIENCE_S = 180
LARGEST_UPLOAD_MB = 8  # the checkout's own files, clip-art and reference tensors included; never .venv


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
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    ports = free_ports(8)
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    names += (
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "node-manager-port",
        "metrics-export-port",
    )
    environment = os.environ | {
        "PATH": os.pathsep.join([str(RAY.parent), os.environ["PATH"]]),  # as with an activated environment
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    command: list[str | Path] = [RAY, "start", "--head", "--block", f"--node-ip-address={LOOPBACK}"]
    command += [
        f"--dashboard-host={LOOPBACK}",
        "--num-cpus=2",
        "--min-worker-port=0",
        f"--object-store-memory={80 << 20}",
    ]
    command += ["--max-worker-port=0"]
    command += [f"--temp-dir={os.environ['RAY_TMPDIR']}/head"]
    command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    server = ChildServer(command, environment=environment, folder=folder, log=folder / "head.log", grace_s=2)
    with server:
        head = Head(
            address=f"http://{LOOPBACK}:{ports[1]}",
            token=token.read_text(),
            environment=environment,
            folder=Path(os.environ["RAY_TMPDIR"]) / "head",
        )
        wait_until_it_answers(head, server)
        family = psutil.Process(server.pid).children(recursive=True)
        yield head
    left = [process for process in family if is_alive(process)]
    for process in left:
        process.kill()
    assert [process.pid for process in left] == [], "processes outlived the head"
    assert [port for port in ports if not is_free(port)] == []


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def status_of(address: str, token: str) -> int:
    """What the head's job list answers to a client with this token; 0 where nobody listens yet."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", "/api/jobs/", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def wait_until_it_answers(head: Head, server: ChildServer) -> None:
    until = time.monotonic() + PATIENCE_S
    while status_of(head.address, head.token) != 200:
        assert server.exit_code() is None, last_lines(server.log)
        assert time.monotonic() < until, last_lines(server.log)
        time.sleep(0.2)


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
    (package,) = head.folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    uploaded = {path.relative_to(package).parts[0] for path in package.rglob("*") if path.is_file()}
    assert {"jobs", "pipeline", "ldznet", "pyproject.toml"} <= uploaded
    assert uploaded.isdisjoint({".venv", "runs", ".git", ".mypy_cache", ".hypothesis"})
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    assert size < LARGEST_UPLOAD_MB * 1e6


def test_the_users_mistake_reaches_the_submitter(head: Head, small_recipe: Callable[..., Path]) -> None:
    words = ["python", "-m", "jobs.precompute", str(small_recipe()), "cache.wrokers=2"]
    done = head.submit("--working-dir", ".", "--", *words)
    assert done.returncode != 0
    assert "unknown key 'cache.wrokers': did you mean 'workers'?" in done.stdout + done.stderr


def test_another_token_is_refused(head: Head, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text(secrets.token_hex(32))
    wrong.chmod(0o600)
    assert status_of(head.address, wrong.read_text()) in {401, 403}
    done = head.submit("--", "echo", "let in", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert "let in" not in told.replace("echo 'let in'", "")
    assert "403" in told or "401" in told or "nvalid" in told
