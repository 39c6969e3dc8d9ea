"""Memory that ranges of objects are read into, in pieces."""

from collections.abc import Sequence


def after(buffers: Sequence[memoryview], filled: int) -> list[memoryview]:
    """What is still to be filled when the first bytes of the buffers are."""
    for number, buffer in enumerate(buffers):
        if filled < buffer.nbytes:
            return [buffer[filled:], *buffers[number + 1 :]]
        filled -= buffer.nbytes
    return []
