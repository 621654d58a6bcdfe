"""What the tests of the local stack share: waiting for a condition."""

import threading
import time
from collections.abc import Callable

import pytest

Eventually = Callable[[Callable[[], object]], None]


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Return a function that waits until a condition holds, and fails when it never does."""

    def wait(condition: Callable[[], object]) -> None:
        pause = threading.Event()
        end = time.monotonic() + 60  # far more than any of it takes: only a hang ends here
        while not condition():
            assert time.monotonic() < end, "the condition never came true"
            pause.wait(0.02)

    return wait
