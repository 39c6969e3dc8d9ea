"""A process is its id and its start: another one with the same id is left alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.services.process_identity import ProcessIdentity

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_it_is_ended(sleeper: subprocess.Popen[bytes]) -> None:
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity.is_alive()
    assert ProcessIdentity(**identity.to_json()) == identity
    assert identity.end(grace_s=10) is True
    assert sleeper.wait() == -signal.SIGTERM
    assert not identity.is_alive()
    assert identity.end(grace_s=10) is False


def test_another_process_with_its_number_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    identity = replace(ProcessIdentity.of(sleeper.pid), started="another boot/1")
    assert not identity.is_alive()
    assert identity.end(grace_s=1) is False
    assert sleeper.poll() is None


def test_who_does_not_listen_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert ProcessIdentity.of(process.pid).end(grace_s=0.2) is True
        assert process.wait() == -signal.SIGKILL


def test_a_process_that_has_ended_is_none() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, not yet collected
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(process.pid)
    process.wait()
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(process.pid)


def test_two_processes_differ(sleeper: subprocess.Popen[bytes]) -> None:
    assert ProcessIdentity.of(sleeper.pid) != ProcessIdentity.of(os.getpid())
