"""The process that ends a command: with all that the command started."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.services import supervisor

GRACE_S = 1.0
# A command that SIGTERM ends at once, and a server of its own that takes its time or does not listen at all.
COMMAND = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
time.sleep(60)
"""
SLOW = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def leave(*_):
    time.sleep(0.5)
    (folder / "left").touch()
    sys.exit()
signal.signal(signal.SIGTERM, leave)
(folder / "ready").touch()
time.sleep(60)
"""
DEAF = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(pathlib.Path(sys.argv[1]) / "ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("server", [SLOW, DEAF], ids=["slow", "deaf"])
def test_a_command_goes_with_the_servers_that_it_started(tmp_path: Path, server: str) -> None:
    program = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), str(GRACE_S)]
    running = subprocess.Popen(
        [*program, sys.executable, "-c", COMMAND, server, str(tmp_path)], stdin=subprocess.PIPE
    )
    while not (tmp_path / "ready").exists():
        assert running.poll() is None
        time.sleep(0.01)
    family = psutil.Process(running.pid).children(recursive=True)
    assert len(family) == 2
    running.terminate()
    running.wait()
    left_before = (tmp_path / "left").exists()
    gone, left = psutil.wait_procs(family, timeout=5)
    assert not left
    assert len(gone) == 2
    assert left_before == (server is SLOW)
