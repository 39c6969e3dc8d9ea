import subprocess
import sys
from textwrap import dedent

import pytest

from pipeline.freed_memory import keep_freed_memory

_FAULTS = dedent(
    """
    import random, resource, sys, threading, torch
    from pipeline.freed_memory import keep_freed_memory

    torch.set_num_threads(1)
    if sys.argv[1] == "keep":
        assert keep_freed_memory()

    def work():
        drawn, held = random.Random(1), []
        for _ in range(400):  # blocks of 16 kB to 24 MB, a few at a time, as in a pass of a network
            held.append(torch.ones(int(2 ** drawn.uniform(12, 22.5))))
            if len(held) > drawn.randint(1, 12):
                held.pop(drawn.randrange(len(held)))

    def count():
        for _ in range(10):
            work()
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        work()
        print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    """
)


def _faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_thread_that_asks_again_for_what_it_freed_meets_hardly_a_page_fault() -> None:
    assert _faults("keep") < _faults("give back") / 10


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
