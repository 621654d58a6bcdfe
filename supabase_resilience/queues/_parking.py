"""Where idle threads wait to be woken one by one.

A condition would make all of them, and whoever adds a job, fight for one lock. Here each thread
waits on a lock of its own, and waking one is a single step; the last to go idle is woken first.
While one is on its way nobody else is woken: once it has found work it wakes the next.
"""

import threading
from collections import deque

__all__ = ["Parking"]


class Parking:
    """`spot = parking.enter()`, look once more for work, then `wait(spot)` or `leave(spot)`."""

    def __init__(self) -> None:
        self._spots: deque[threading.Lock] = deque()
        self._is_waking = False

    def enter(self) -> threading.Lock:
        """From here on this thread can be woken, even before it waits."""
        spot = threading.Lock()
        spot.acquire()
        self._spots.append(spot)
        return spot

    def wait(self, spot: threading.Lock, timeout: float | None) -> None:
        """Until it is woken, or for `timeout` seconds."""
        if spot.acquire(timeout=-1 if timeout is None else timeout) or not self._forget(spot):
            self._is_waking = False

    def leave(self, spot: threading.Lock) -> None:
        """It need not be woken; if it just was, another one is instead."""
        if not self._forget(spot):
            self._is_waking = False
            self.wake_one()

    def _forget(self, spot: threading.Lock) -> bool:
        try:
            self._spots.remove(spot)
        except ValueError:
            return False
        return True

    def wake_one(self) -> None:
        """Wake an idle thread, if there is one and none is on its way."""
        if self._spots and not self._is_waking:
            self._is_waking = True
            self._wake()

    def _wake(self) -> None:
        try:
            spot = self._spots.pop()
        except IndexError:
            self._is_waking = False
        else:
            spot.release()

    def wake_all(self) -> None:
        """Wake all that are idle now."""
        for _ in range(len(self._spots)):
            self._wake()
