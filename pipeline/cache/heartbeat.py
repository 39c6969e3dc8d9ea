"""A mark on the store that a background thread renews, and the knowledge of whether it still holds."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from ldznet.errors import UserError

logger = logging.getLogger(__name__)

RENEW_EVERY_S: Final = 60.0
DEAD_AFTER_S: Final = 15 * 60.0  # others take a mark not renewed for so long, by the store's clock, for dead
SURE_FOR_S: Final = (
    10 * 60.0
)  # its holder stops relying on it earlier: a request may be on its way for minutes


class Heartbeat:
    """Renews a mark until it is stopped.

    Args:
        renew: writes the mark. False: it is somebody else's by now.
        what: the mark's name, for messages.
        every_s: seconds between renewals.
    """

    def __init__(self, renew: Callable[[], bool], *, what: str, every_s: float = RENEW_EVERY_S) -> None:
        self._renew, self._what, self._every_s = renew, what, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._renewed = _clock()
        self._lost = False
        self.failing = False  # the last renewal did not succeed

    def start(self) -> None:
        """Write the mark, then keep renewing it. What keeps the first writing from succeeding is raised."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End the renewals; none is on its way any more afterwards."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def holds(self) -> bool:
        """Whether nobody can have taken the mark for dead, at any time since it was written."""
        self._lost = self._lost or _clock() - self._renewed > SURE_FOR_S
        return not self._lost

    def ensure(self) -> None:
        """Go on only under a mark that holds.

        Raises:
            OSError: it was not renewed for too long (the store was away, this machine slept), or somebody took it.
        """
        if not self.holds:
            raise OSError(
                f"{self._what} was not renewed for {SURE_FOR_S / 60:.0f} minutes or is gone, so that others may "
                "have taken this job for dead: run it again"
            )

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._beat()
            except (OSError, UserError) as error:  # credentials may be renewed, and the store may come back
                self.failing = True
                logger.warning("%s could not be renewed: %s", self._what, error)

    def _beat(self) -> None:
        begun = _clock()  # the store's time for the mark is not before this
        renewed = self._renew()
        self._lost = self._lost or not renewed or begun - self._renewed > SURE_FOR_S
        self._renewed, self.failing = begun, False


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where the system tells them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()
