"""Ray's own command line, made fit for several nodes on loopback and for machines at their limit. Ray is pinned."""

import sys
from collections.abc import Sequence
from pathlib import Path

# A node's parts get 30 s from Ray, and then it gives up; with everything else that a busy machine does they may take
# longer: who asks for the node's record is made to wait.
# The setting that keeps Ray on loopback makes `ray start --address` refuse, and without it Ray takes 127.0.0.1 for the
# machine's other address. So the command alone, and no server that it starts, sees another value.
_SCRIPT = """\
import time, types
from ray._private import services
from ray.scripts import scripts
found = services.get_node
def wait_for_node(*words):
    until = time.monotonic() + 150
    while True:
        try:
            return found(*words)
        except RuntimeError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
services.get_node = wait_for_node
scripts.ray_constants = types.SimpleNamespace(**vars(scripts.ray_constants))
scripts.ray_constants.ENABLE_RAY_CLUSTER = True
scripts.main()
"""
_STARTED = "Ray runtime started"

NODE_SETTINGS = {
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_worker_niceness": "0",  # Ray's own 15 gives whatever else runs a machine's time before the networks
}


def ray_command(*words: str | Path) -> Sequence[str | Path]:
    """`ray WORDS`, as a command for `ChildServer`."""
    return [sys.executable, "-c", _SCRIPT, *words]


def has_started(log: Path) -> bool:
    """Whether `ray start` says so in its log. Before, its dashboard may answer already and it still give up."""
    return log.exists() and _STARTED in log.read_text(errors="replace")
