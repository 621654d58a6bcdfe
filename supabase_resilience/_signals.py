"""SIGTERM and SIGINT while something runs: the first asks it to stop, the next one aborts."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

__all__ = ["handled_signals", "meaning_of"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def meaning_of(number: int) -> BaseException:
    """What ends a program that gets this signal."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _end(number: int) -> None:
    raise meaning_of(number)


@contextmanager
def handled_signals(
    request_stop: Callable[[], None], abort: Callable[[int], None] = _end
) -> Generator[None]:
    """Within it, the first signal calls `request_stop`, each other `abort`.

    Does nothing outside of the main thread, where Python allows no signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        asked.append(number)
        if len(asked) == 1:
            request_stop()
        else:
            abort(number)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
