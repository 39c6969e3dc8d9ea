"""`ldznet submit` on a real Ray head: followed through cut connections, its exit codes, two submissions at once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from integration.cutting_proxy import cutting_proxy

from pipeline.services.ray_head import RayHead

pytestmark = pytest.mark.long  # `make test-cluster`

CHECKOUT = Path(__file__).parents[2]
LDZNET = [sys.executable, "-m", "jobs.cli", "submit"]
RAY = Path(sys.executable).with_name("ray")
PATIENCE_S = 300
LINES = [f"line {number}" for number in range(30)]
# Says ten lines, waits for a file, and so on; ends with a code.
TALKS = """
import pathlib, sys, time
for number in range(30):
    print("line", number, flush=True)
    while number in (9, 19) and not pathlib.Path(sys.argv[1], str(number)).exists():
        time.sleep(0.1)
sys.exit(int(sys.argv[2]))
"""
# Both have seen that no job runs before either is sent.
AT_ONCE = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from jobs.submit_cluster import Cluster
from jobs.submit_package import Package
from jobs.submit_request import DIGEST, IDENTITY, JOB, TRAINS, JobRequest
from ldznet.errors import UserError

recipe, both = sys.argv[1], threading.Barrier(2)

class Together(JobRequest):
    def submission_id(self, *, taken):
        name = super().submission_id(taken=taken)
        both.wait(60)
        return name

def submit(identity):
    noted = {IDENTITY: identity, DIGEST: identity, JOB: "train", "ldznet.recipe": recipe}
    noted[TRAINS] = f'["s3://b/{recipe}"]'
    package = Package(files={"notes.txt": Path("pyproject.toml")})
    request = Together(job="train", words=("sleep", "600"), package=package, environment={}, metadata=noted)
    try:
        return Cluster(None).submit(request)
    except UserError as error:
        return [str(error), None]

with ThreadPoolExecutor(2) as pool:
    print(json.dumps(list(pool.map(submit, sys.argv[2:]))))
"""


@dataclass(frozen=True, kw_only=True)
class Head:
    address: str
    environment: dict[str, str]

    def start(self, name: str, *words: str) -> None:
        """A job like any other: `ldznet submit` follows whatever has an id."""
        command = [RAY, "job", "submit", "--submission-id", name, "--no-wait", "--", *words]
        subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True, timeout=PATIENCE_S
        )

    def follow(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*LDZNET, *words],
            cwd=CHECKOUT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        process = self.follow(*words)
        out, err = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(words, process.returncode, out, err)


def read_until(following: subprocess.Popen[str], line: str) -> list[str]:
    """The lines up to this one."""
    assert following.stdout is not None
    lines: list[str] = []
    while line not in lines:
        told = following.stdout.readline()
        assert told, lines
        lines.append(told.removesuffix("\n"))
    return lines


def read_to_the_end(following: subprocess.Popen[str]) -> tuple[list[str], str]:
    """The lines that are left, and what was said of errors. (`communicate` loses what `readline` has read ahead.)"""
    assert following.stdout is not None
    assert following.stderr is not None
    lines, errors = following.stdout.read().splitlines(), following.stderr.read()
    following.wait(PATIENCE_S)
    return lines, errors


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with RayHead(folder=tmp_path_factory.mktemp("head"), jobs={}, cpus=2) as server:
        yield Head(address=server.address, environment=os.environ | server.environment())


@pytest.mark.parametrize("code", [0, 1])
def test_a_log_is_said_once_through_cut_connections_and_the_exit_code_is_the_jobs(
    code: int, head: Head, tmp_path: Path
) -> None:
    head.start(f"talks-{code}", sys.executable, "-c", TALKS, str(tmp_path), str(code))
    with cutting_proxy(head.address) as proxy:
        following = head.follow("--attach", f"talks-{code}", "--address", proxy.address)
        lines = []
        for number in (9, 19):
            lines += read_until(following, f"line {number}")
            proxy.cut(away_s=1.5)
            (tmp_path / str(number)).touch()
        rest, errors = read_to_the_end(following)
    assert proxy.cuts >= 4  # two connections, both sides of each
    told = [line for line in lines + rest if line.startswith(("line ", "talks-"))]
    assert told == [*LINES, f"talks-{code}: {'FAILED' if code else 'SUCCEEDED'}"]
    assert following.returncode == code
    assert errors == ""


def test_a_job_that_ended_while_the_connection_was_away(head: Head, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    head.start(
        "short", "sh", "-c", f"echo begun; until [ -e '{go_on}' ]; do sleep 0.1; done; echo over; exit 2"
    )
    with cutting_proxy(head.address) as proxy:
        following = head.follow("--attach", "short", "--address", proxy.address)
        lines = read_until(following, "begun")
        proxy.cut(away_s=8)
        go_on.touch()
        rest, errors = read_to_the_end(following)
    assert (lines + rest).count("begun") == 1
    assert rest[-2:] == ["over", "short: FAILED"]
    assert following.returncode == 2
    assert errors == ""


def test_a_followed_job_that_is_stopped_ends_in_one(head: Head) -> None:
    head.start("endless", "sh", "-c", "echo begun; sleep 600")
    following = head.follow("--attach", "endless")
    read_until(following, "begun")
    stopped = head.run("--stop", "endless")
    assert (stopped.returncode, stopped.stdout) == (0, "endless: STOPPED\n")
    rest, errors = read_to_the_end(following)
    assert "endless: STOPPED" in rest
    assert following.returncode == 1
    assert errors == ""


@pytest.mark.parametrize("identities", [["same", "same"], ["two workers", "one worker"]])
def test_of_two_submissions_at_the_same_instant_one_is_taken(identities: Sequence[str], head: Head) -> None:
    recipe = f"recipe-{len(set(identities))}"
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, recipe, *identities],
        cwd=CHECKOUT,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = sorted(json.loads(done.stdout.splitlines()[-1]), key=lambda result: result[1] is not True)
    (name, new), other = results
    assert new is True
    running = [line for line in head.run("--status").stdout.splitlines() if recipe in line]
    assert [line.split()[0] for line in running] == [name]
    if len(set(identities)) == 1:
        assert other == [name, False]
    else:
        told, new = other
        assert told.startswith(
            f"{name} runs the same training, s3://b/{recipe}: stop it (ldznet submit --stop "
        )
        assert new is None
    head.run("--stop", name)
