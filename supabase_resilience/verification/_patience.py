"""What a failed command of a pass means: wait and do it again, or let the pass decide."""

from typing import NamedTuple

from postgrest.exceptions import APIError

from supabase_resilience.errors import CircuitOpenError, VerificationError
from supabase_resilience.failures import classify, words_of
from supabase_resilience.verification._commands import Command, Write

__all__ = ["Patience", "explained"]

_TIMEOUTS = {"57014", "PGRST003"}
_FIRST, _LONGEST = 0.5, 30.0


class Patience:
    """Counts the failures of one command in a row."""

    def __init__(self) -> None:
        self._failures = 0

    def wait_for(self, command: Command, error: Exception) -> "Delay | None":
        """How long to wait before the command is done again; None for the pass to decide."""
        if isinstance(error, APIError) and error.code in _TIMEOUTS:
            return None
        meaning = classify(error)
        if not meaning.is_outage or meaning.verdict == "blocked":  # a key needs a person
            return None
        if isinstance(command, Write) and meaning.write_applied != "no":
            return None
        self._failures += 1
        wait = min(_LONGEST, _FIRST * 2 ** min(self._failures - 1, 10))
        if isinstance(error, CircuitOpenError):
            return Delay(max(wait, error.retry_after or 0.0), "the circuit is open")
        return Delay(max(wait, meaning.retry_after or 0.0), meaning.reason)


class Delay(NamedTuple):
    """Seconds to wait, and why."""

    seconds: float
    reason: str


def explained(error: Exception, table: str) -> Exception:
    """An error that says what to do, where waiting does not help."""
    if not isinstance(error, APIError):
        return error
    remedy = {
        "42P01": "create the table, or correct table= and schema=",
        "PGRST205": "create the table, or correct table= and schema=",
        "PGRST106": "expose the schema in the API's settings",
        "42703": "check id_column, and the columns that rules name",
        "42501": "grant the role of this key what it needs on the table, or use the secret key",
    }.get(error.code or "")
    if remedy is None:
        return error
    return VerificationError(f"cannot verify {table}: {words_of(error)}; {remedy}")
