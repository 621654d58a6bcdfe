"""Arguments that make no sense are refused at construction, by name and with the value."""

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from supabase_resilience import _checks

Check = Callable[[str, Any], None]

TEXT = _checks.check_text
COUNT = _checks.check_count
SECONDS = _checks.check_seconds
CALLABLE = _checks.check_callable
NUMBER: Check = partial(_checks.check_number, at_least=0.5)
OPTIONAL: Check = partial(_checks.check_optional, SECONDS)

ACCEPTED: list[tuple[Check, Any]] = [
    (TEXT, "x"),
    (COUNT, 1),
    (COUNT, 10**400),
    (partial(COUNT, at_least=0), 0),
    (NUMBER, 0.5),
    (NUMBER, 1),
    (SECONDS, 1e-9),
    (SECONDS, 3600),
    (CALLABLE, print),
    (CALLABLE, str),
    (OPTIONAL, None),
    (OPTIONAL, 1.0),
]

REFUSED: list[tuple[Check, Any, type[Exception], str]] = [
    (TEXT, "", ValueError, "thing must not be empty"),
    (TEXT, b"x", TypeError, "thing must be a string, got b'x'"),
    (TEXT, None, TypeError, "thing must be a string, got None"),
    (COUNT, 0, ValueError, "thing must be >= 1, got 0"),
    (COUNT, -3, ValueError, "thing must be >= 1, got -3"),
    (COUNT, 1.0, TypeError, "thing must be a whole number, got 1.0"),
    (COUNT, True, TypeError, "thing must be a whole number, got True"),
    (COUNT, "1", TypeError, "thing must be a whole number, got '1'"),
    (partial(COUNT, at_least=0), -1, ValueError, "thing must be >= 0, got -1"),
    (NUMBER, 0.4, ValueError, "thing must be >= 0.5, got 0.4"),
    (NUMBER, "1", TypeError, "thing must be a number, got '1'"),
    (NUMBER, None, TypeError, "thing must be a number, got None"),
    (NUMBER, False, TypeError, "thing must be a number, got False"),
    (NUMBER, Decimal(1), TypeError, "thing must be a number, got Decimal('1')"),
    (NUMBER, float("nan"), ValueError, "thing must be finite, got nan"),
    (NUMBER, float("inf"), ValueError, "thing must be finite, got inf"),
    (SECONDS, 0, ValueError, "thing must be more than 0 seconds, got 0"),
    (SECONDS, -0.1, ValueError, "thing must be more than 0 seconds, got -0.1"),
    (SECONDS, float("nan"), ValueError, "thing must be finite, got nan"),
    (SECONDS, float("-inf"), ValueError, "thing must be finite, got -inf"),
    (SECONDS, True, TypeError, "thing must be a number, got True"),
    (CALLABLE, None, TypeError, "thing must be callable, got None"),
    (CALLABLE, "print", TypeError, "thing must be callable, got 'print'"),
    (OPTIONAL, 0, ValueError, "thing must be more than 0 seconds, got 0"),
    (OPTIONAL, "1", TypeError, "thing must be a number, got '1'"),
]


@pytest.mark.parametrize(("check", "value"), ACCEPTED)
def test_accepted(check: Check, value: Any) -> None:
    """What makes sense passes without a word."""
    assert check("thing", value) is None


@pytest.mark.parametrize(("check", "value", "kind", "message"), REFUSED)
def test_refused(check: Check, value: Any, kind: type[Exception], message: str) -> None:
    """What makes none is a ValueError, or a TypeError, that names the argument and the value."""
    with pytest.raises(kind) as caught:
        check("thing", value)
    assert message == str(caught.value)


def test_number_beyond_any_float() -> None:
    """A whole number that no float can hold is refused as any other infinity."""
    with pytest.raises(ValueError, match="thing must be finite, got 1000"):
        SECONDS("thing", 10**400)
