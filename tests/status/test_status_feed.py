"""The page's events: one rendering for all, and only when something is new."""

import asyncio
import json

import pytest

from supabase_resilience import CircuitBreaker, MemoryQueue, QueueProcessor, Resilience
from supabase_resilience.status import EventLog, _feed
from supabase_resilience.status._backlog import Backlog
from supabase_resilience.status._feed import Feed
from supabase_resilience.status._html import Html, join, tag
from supabase_resilience.status._snapshot import take
from supabase_resilience.status._words import count, duration, plural, precise
from supabase_resilience.testing import FakeClock


class Watched:
    """A breaker that is looked at through a feed, and how often that was done."""

    def __init__(self) -> None:
        self.breaker = CircuitBreaker(name="supabase", clock=FakeClock())
        queue = QueueProcessor(None, store=MemoryQueue("mails"))
        self._resilience = Resilience(self.breaker, queue)
        self.takes = 0
        self.feed = Feed(self._take)

    def _take(self):
        self.takes += 1
        log = EventLog()
        return take(self._resilience, title="Status", log=log, backlog=Backlog({}))


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(_feed, "_EVERY", 0.01)
    monkeypatch.setattr(_feed, "_BEAT", 0.02)
    monkeypatch.setattr(_feed, "_LIFE", 0.3)
    return Watched()


def events(messages):
    """Their names, but for the first message, which is no event."""
    assert b"retry: 500\n\n" == messages[0]
    return [
        message.partition(b"event: ")[2].partition(b"\n")[0].decode() for message in messages[1:]
    ]


async def watch(feed, seen=None):
    return [message async for message in feed.stream(seen)]


def test_a_page_that_stays_the_same_is_sent_once(watched):
    """Ages go on, but those the browser counts; it is told that the server is there."""
    told = events(asyncio.run(watch(watched.feed)))
    assert "state" == told[0]
    assert {"beat"} == set(told[1:])


def test_who_comes_back_is_sent_only_what_is_new(watched):
    """A stream ends by itself, so that no server waits for it; the next one goes on from there."""
    version = watched.feed.look().version
    assert {"beat"} == set(events(asyncio.run(watch(watched.feed, version))))


def test_what_changes_is_sent(watched):
    """With what a browser needs of it, under a version of its own."""

    async def change_between():
        stream = watched.feed.stream(None)
        messages = [await anext(stream), await anext(stream)]
        watched.breaker.force_open()
        messages += [message async for message in stream]
        return messages

    messages = asyncio.run(change_between())
    states = [message.decode() for message in messages if b"event: state" in message]
    first, second = (json.loads(each.partition("data: ")[2]) for each in states)
    assert "All 2 parts work · Status" == first["title"]
    assert "1 of 2 parts is degraded · Status" == second["title"]
    assert "1 of 2 parts is degraded: breaker:supabase degraded" == second["said"]
    assert 2 == len({each.partition("\n")[0] for each in states})


def test_all_who_look_share_one_look(watched, monkeypatch):
    """However many come in a second."""
    clock = FakeClock()
    monkeypatch.setattr(_feed._clock, "monotonic", clock)
    monkeypatch.setattr(_feed, "_EVERY", 1.0)
    views = {id(watched.feed.look()) for _ in range(100)}
    assert (1, 1) == (len(views), watched.takes)
    clock.advance(1.0)
    watched.feed.look()
    assert 2 == watched.takes


# --- words and markup -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86400, "1 d"),
        (360000, "4 d 4 h"),
    ],
)
def test_durations(seconds, text):
    """In the units that people think in."""
    assert text == duration(seconds)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0042, "4 ms"), (1.26, "1.3 s"), (9.9, "9.9 s"), (75, "1 min")]
)
def test_precise_durations(seconds, text):
    """Of what is quick, more is said."""
    assert text == precise(seconds)


def test_counts():
    """Thousands are told apart, one is not plural."""
    assert ("12,345", "1 part", "0 parts") == (count(12345), plural(1, "part"), plural(0, "part"))


def test_markup_is_safe_by_construction():
    """What is no markup is escaped, in text and in attributes."""
    nasty = "<script>alert('1')</script>\"&"
    made = tag("p", nasty, tag("b", 1), None, title=nasty, hidden=False, data_at=3)
    assert (
        '<p title="&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;&quot;&amp;" data-at="3">'
        "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;&quot;&amp;<b>1</b></p>"
    ) == made
    assert "&lt;b&gt;<b></b>" == join("<b>", Html("<b></b>"))
