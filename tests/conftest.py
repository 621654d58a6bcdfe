"""What holds for every test: Hypothesis judges no test by time, and Ctrl-C ends a process."""

import signal

import pytest
from hypothesis import settings

# Whoever starts the tests in the background of a shell has them ignore it, and all their children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("here", database=None, deadline=None)
settings.load_profile("here")

# Files of few tests that wait for long: begun last, they would keep everybody waiting.
_FIRST = (
    "test_examples",
    "test_chaos_queue",
    "test_chaos_verification",
    "test_benchmarks",
    "test_chaos_listener",
    "test_alerts_in_faults",
    "test_listener_faults",
    "test_stack",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put them in front; `--no-loadscope-reorder` keeps them there."""
    place = {name: number for number, name in enumerate(_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(_FIRST)))
