"""The only place that reads the time, so that a test can hand in another clock.

Two clocks, because they answer different questions: `monotonic` measures how long something
takes and never jumps; `wall` is needed only to understand a date that a server wrote.
"""

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Anything that answers the current time in seconds."""

monotonic: Clock = time.monotonic
wall: Clock = time.time
