"""A countdown bounds an attempt, and keeps nothing of it."""

import asyncio
import gc
import weakref

import httpx
import pytest

from supabase_resilience._countdown import StrictCountdown
from supabase_resilience.retry import RetryConfig

pytestmark = pytest.mark.anyio


async def test_an_attempt_that_is_over_keeps_no_task():
    """A response keeps its request, that its countdown: with it would stay the rows of a page."""
    countdown = StrictCountdown(httpx.Timeout(5.0), RetryConfig())

    async def attempt() -> None:
        assert countdown["read"] is not None
        countdown.stop()

    gc.disable()  # what only it would find stays for long in a busy process
    try:
        task = asyncio.ensure_future(attempt())
        kept = weakref.ref(task)
        await task
        del task
        await asyncio.sleep(0)  # the loop lets go of it
        assert kept() is None
    finally:
        gc.enable()
