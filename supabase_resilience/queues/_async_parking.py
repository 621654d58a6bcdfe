"""Where idle tasks wait to be woken one by one; the same as `_parking.py`, on one event loop."""

import asyncio
from collections import deque

__all__ = ["AsyncParking"]

Spot = asyncio.Future[None]


class AsyncParking:
    """`spot = parking.enter()`, look once more for work, then `await wait(spot)` or `leave(spot)`.

    To be used from the loop's own thread only.
    """

    def __init__(self) -> None:
        self.spots: deque[Spot] = deque()

    def enter(self) -> Spot:
        """From here on this task can be woken, even before it waits."""
        spot: Spot = asyncio.get_running_loop().create_future()
        self.spots.append(spot)
        return spot

    async def wait(self, spot: Spot, timeout: float | None) -> None:  # noqa: ASYNC109
        """Until it is woken, or for `timeout` seconds."""
        timer = None
        if timeout is not None:
            timer = asyncio.get_running_loop().call_later(timeout, _wake, spot)
        try:
            await spot
        except asyncio.CancelledError:
            self.leave(spot)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._forget(spot)

    def leave(self, spot: Spot) -> None:
        """It need not be woken; if it just was, another one is instead."""
        if not self._forget(spot):
            self.wake_one()

    def _forget(self, spot: Spot) -> bool:
        try:
            self.spots.remove(spot)
        except ValueError:
            return False
        return True

    def wake_one(self) -> None:
        """Wake an idle task, if there is one."""
        if self.spots:
            _wake(self.spots.pop())

    def wake_all(self) -> None:
        """Wake all that are idle now."""
        while self.spots:
            _wake(self.spots.pop())


def _wake(spot: Spot) -> None:
    if not spot.done():
        spot.set_result(None)
