"""The table of defaults in the README says what the signatures say."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import supabase_resilience

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def told() -> Iterator[tuple[str, str, str]]:
    """Class, option and default of each row; a row without a class goes on with that above it."""
    table = README.split("\n## Defaults\n")[1].split("\n## ")[0]
    owner = ""
    for line in table.splitlines():
        cells = line.split("|")
        if len(cells) < 4 or "=" not in cells[2]:
            continue
        owner = cells[1].strip(" `") or owner
        for option, default in re.findall(r"`(\w+)=([^`]+)`", cells[2]):
            yield owner, option, default


@pytest.mark.parametrize(("owner", "option", "default"), list(told()))
def test_the_default_is_that_of_the_signature(owner, option, default):
    """The same value, not just the same text."""
    parameter = inspect.signature(getattr(supabase_resilience, owner)).parameters[option]
    assert ast.literal_eval(default) == parameter.default


def test_all_patterns_have_their_defaults_told():
    """A table that cannot be read would pass all of it."""
    expected = {
        "CircuitBreaker",
        "FailureRate",
        "RetryConfig",
        "QueueProcessor",
        "RealtimeListener",
    }
    expected |= {"ServerSideVerification", "Resilience", "Alert"}
    assert expected == {owner for owner, _, _ in told()}
    assert 40 < len(list(told()))
