"""Hooks: what they raise changes nothing, several are one, and spans are around the user's work."""

import asyncio
import functools
import inspect
from contextlib import contextmanager

import pytest

from supabase_resilience import (
    AsyncQueueProcessor,
    CircuitBreaker,
    Hooks,
    QueueProcessor,
    log_event,
)
from supabase_resilience._telling import span_of, spanned
from supabase_resilience.events import CircuitOpened
from supabase_resilience.testing import RecordingHook


class SpanHook(RecordingHook):
    """Remembers spans: name, attributes, and the type of the error they ended with."""

    def __init__(self, log=None) -> None:
        super().__init__()
        self.spans = [] if log is None else log

    @contextmanager
    def span(self, name, attributes):
        self.spans.append(("begin", name, dict(attributes)))
        try:
            yield
        except BaseException as error:
            self.spans.append(("end", name, type(error).__name__))
            raise
        self.spans.append(("end", name, None))


class BrokenHook:
    """Fails wherever it is asked."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __call__(self, event) -> None:
        raise RuntimeError("hook")

    def span(self, name, attributes):
        if self.where == "span":
            raise RuntimeError("span")
        return self

    def __enter__(self):
        if self.where == "enter":
            raise RuntimeError("enter")

    def __exit__(self, *_):
        raise RuntimeError("exit")


def opened(breaker: CircuitBreaker) -> None:
    breaker.force_open()


def test_each_hook_is_told() -> None:
    """One that raises keeps no other from it."""
    first, last = RecordingHook(), RecordingHook()
    opened(CircuitBreaker(on_event=Hooks(first, BrokenHook("call"), last)))
    assert [CircuitOpened] == [type(event) for event in first.events]
    assert first.events == last.events


def test_hooks_that_cannot_be_called_are_refused() -> None:
    """The error names the argument."""
    with pytest.raises(TypeError, match="hooks"):
        Hooks(log_event, None)  # type: ignore[arg-type]


def test_spans_of_several_are_nested() -> None:
    """The first hook's is the outermost; a hook without spans has none."""
    log: list = []
    a, b = SpanHook(log), SpanHook(log)
    handler = spanned(Hooks(a, log_event, b), "x", dict, lambda: log.append("work"))
    handler()
    begin, end = ("begin", "x", {}), ("end", "x", None)
    assert [begin, begin, "work", end, end] == log
    assert span_of(Hooks(log_event)) is None
    assert span_of(Hooks(log_event, a)) is not None


def test_without_spans_the_handler_is_left_alone() -> None:
    """It costs nothing then."""

    def handler() -> None: ...

    assert spanned(log_event, "x", dict, handler) is handler


@pytest.mark.parametrize("where", ["span", "enter", "exit"])
@pytest.mark.parametrize("error", [None, ValueError("work"), asyncio.CancelledError()], ids=repr)
def test_a_span_that_fails_changes_nothing(where, error, caplog) -> None:
    """What the work returns or raises is what the caller gets."""

    def handler() -> str:
        if error is not None:
            raise error
        return "done"

    handler = spanned(BrokenHook(where), "x", dict, handler)
    if error is None:
        assert "done" == handler()
    else:
        with pytest.raises(type(error)) as caught:
            handler()
        assert caught.value is error
    assert any("span of x failed" in message for message in caplog.messages)


async def _async_handler(data):
    if data == "bad":
        raise ValueError(data)
    return data


@pytest.mark.parametrize("data", ["good", "bad"])
@pytest.mark.parametrize("way", ["async", "plain", "hands out a coroutine"])
def test_a_span_ends_with_the_work(way, data) -> None:
    """Whatever kind of function a handler is; its kind stays the same."""
    hook = SpanHook()
    handler = {
        "async": _async_handler,
        "plain": lambda data: asyncio.run(_async_handler(data)),
        "hands out a coroutine": lambda data: _async_handler(data),  # noqa: PLW0108
    }[way]
    made = spanned(hook, "x", lambda data: {"data": data}, handler)
    assert inspect.iscoroutinefunction(made) is inspect.iscoroutinefunction(handler)

    async def call():
        result = made(data)
        if inspect.isawaitable(result):
            assert 1 == len(hook.spans) or way == "async"
            result = await result
        return result

    run = functools.partial(asyncio.run, call()) if way != "plain" else lambda: made(data)
    if data == "bad":
        with pytest.raises(ValueError, match="bad"):
            run()
    else:
        assert "good" == run()
    ended_with = "ValueError" if data == "bad" else None
    assert [("begin", "x", {"data": data}), ("end", "x", ended_with)] == hook.spans


def test_a_job_has_a_span() -> None:
    """It says which job of which queue, and which attempt; never what is in it."""
    hook, failures = SpanHook(), iter([ValueError("secret")])

    def handle(_) -> None:
        for error in failures:
            raise error

    queue = QueueProcessor(handle, retry_delay=0.0, on_event=hook)
    job = queue.enqueue({"secret": 1})
    queue.stop()
    facts = {"queue": queue.name, "job": job}
    assert [
        ("begin", "queue.job", {**facts, "attempt": 1}),
        ("end", "queue.job", "ValueError"),
        ("begin", "queue.job", {**facts, "attempt": 2}),
        ("end", "queue.job", None),
    ] == hook.spans
    assert "secret" not in repr(hook.spans)


def test_a_job_of_an_async_queue_has_a_span() -> None:
    """The same."""
    hook = SpanHook()

    async def main() -> str:
        async def handle(_) -> None: ...

        queue = AsyncQueueProcessor(handle, on_event=hook)
        job = await queue.enqueue(1)
        await queue.stop()
        return job

    job = asyncio.run(main())
    assert job in repr(hook.spans[0])
    assert [("end", "queue.job", None)] == hook.spans[1:]
