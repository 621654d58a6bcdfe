"""The token of a listener: asked for ahead of its expiry, and never taken for granted."""

import base64
import functools
import json
from typing import Any

import pytest

from supabase_resilience.errors import ListenerError
from supabase_resilience.listener._tokens import Tokens
from supabase_resilience.testing import FakeClock

pytestmark = pytest.mark.anyio
NOW = 1_000_000.0


@pytest.fixture
def anyio_backend():
    return "asyncio"


def jwt(claims: Any) -> str:
    middle = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"header.{middle}.signature"


class AsyncSource:
    """Tells a token when it is awaited."""

    async def __call__(self) -> str:
        return "third"


async def asynchronous() -> str:
    return "second"


@pytest.mark.parametrize("source", [None, "fixed"])
async def test_a_token_that_stays(source):
    """The key itself, or a given token: there is nobody to ask for another."""
    tokens = Tokens(source)
    await tokens.renew()
    assert (source, False, False) == (tokens.current, tokens.can_renew, tokens.is_due)


@pytest.mark.parametrize(
    ("source", "token"),
    [
        (lambda: "first", "first"),
        (asynchronous, "second"),
        (AsyncSource(), "third"),
        (functools.partial(asynchronous), "second"),
    ],
)
async def test_sources(source, token):
    """A function, plain or async; there is no token before it was asked."""
    tokens = Tokens(source)
    assert (None, True) == (tokens.current, tokens.can_renew)
    await tokens.renew()
    assert token == tokens.current


@pytest.mark.parametrize("nothing", ["", None, 7])
async def test_no_token(nothing):
    """A source that has none is told so, and the one of before stays."""
    answers: list[Any] = ["good", nothing]
    tokens = Tokens(lambda: answers.pop(0))
    await tokens.renew()
    with pytest.raises(ListenerError, match=r"token\(\) returned no token"):
        await tokens.renew()
    assert "good" == tokens.current


async def test_a_source_that_raises():
    """Its error gets out."""

    def fail() -> str:
        raise KeyError("session")

    with pytest.raises(KeyError):
        await Tokens(fail).renew()


@pytest.mark.parametrize(
    ("lives", "renewed_after"), [(3600, 3540), (240, 180), (100, 75), (4, 3), (0, 0), (-10, 0)]
)
async def test_due_ahead_of_expiry(lives, renewed_after):
    """A minute before, or after three quarters of a short life; one that has expired is due."""
    clock = FakeClock(NOW)
    tokens = Tokens(lambda: jwt({"exp": int(NOW) + lives}), clock)
    await tokens.renew()
    if renewed_after:
        clock.advance(renewed_after - 0.5)
        assert not tokens.is_due
        clock.advance(0.5)
    assert tokens.is_due


WITHOUT_EXPIRY = [
    "sb_secret_x",
    "a.b.c",
    "a.e30.c",
    "a.é.c",
    jwt({}),
    jwt([]),
    jwt(None),
    jwt({"exp": "soon"}),
    jwt({"exp": None}),
]


@pytest.mark.parametrize("token", WITHOUT_EXPIRY)
async def test_a_token_that_does_not_say(token):
    """It is used until it is refused."""
    tokens = Tokens(lambda: token)
    await tokens.renew()
    assert (token, False) == (tokens.current, tokens.is_due)


async def test_no_longer_due():
    """A token that does not say ends what the one of before has said."""
    answers = [jwt({"exp": NOW - 1}), "opaque"]
    tokens = Tokens(lambda: answers.pop(0), FakeClock(NOW))
    await tokens.renew()
    assert tokens.is_due
    await tokens.renew()
    assert not tokens.is_due
