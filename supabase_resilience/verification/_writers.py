"""How a patch is written: by compare-and-swap, and with a lease also past its fencing token."""

from collections.abc import Mapping
from typing import Any, Protocol

from postgrest.exceptions import APIError

from supabase_resilience._queries import Rpc
from supabase_resilience.failures import classify
from supabase_resilience.verification._commands import Plan, Read, Write
from supabase_resilience.verification._lease import Lease
from supabase_resilience.verification._report import Fate
from supabase_resilience.verification._rules import Rule
from supabase_resilience.verification._table import XMIN, Table

__all__ = ["FencedWriter", "PlainWriter", "Writer"]

_FIX = "supabase_resilience_verification_fix"
_FENCED_OFF = "PT409"
_UNSURE = "the answer to the write was lost"
Written = tuple[Fate | None, str]


class Writer(Protocol):
    """Writes patches of rows that are still what they were."""

    def is_lost(self) -> Plan[bool]:
        """Whether another runner has taken over, so that nothing may be begun."""
        ...

    def write(
        self, table: Table, rule: Rule, row: Mapping[str, Any], patch: Mapping[str, Any]
    ) -> Plan[Written]:
        """What became of it; a fate of None: written, or with a reason perhaps, so look at it."""
        ...


class PlainWriter:
    """Without a lease: one PATCH that hits one row or none."""

    def is_lost(self) -> Plan[bool]:
        """There is nothing to lose."""
        yield from ()
        return False

    def write(
        self, table: Table, rule: Rule, row: Mapping[str, Any], patch: Mapping[str, Any]
    ) -> Plan[Written]:
        """What became of it."""
        try:
            written = yield Write(patch, table.unchanged(row, rule), table.key)
        except Exception as error:
            if _is_refusal(error):
                raise
            return None, _UNSURE
        if written:
            return None, ""
        return (yield from _after_nothing(table, row, patch))


class FencedWriter:
    """With a lease: a function of ours that also compares the token."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def is_lost(self) -> Plan[bool]:
        """Whether the lease has run out by our own clock, which goes on while we are frozen."""
        yield from ()
        return not self._lease.is_held

    def write(
        self, table: Table, rule: Rule, row: Mapping[str, Any], patch: Mapping[str, Any]
    ) -> Plan[Written]:
        """What became of it."""
        if not self._lease.is_held:
            return "left", "the lease was lost"
        guard = None if rule.guard is None else {c: row[c] for c in rule.guard}
        try:
            written = yield Rpc(
                _FIX,
                {
                    "p_lease": self._lease.name,
                    "p_token": self._lease.token,
                    "p_schema": table.schema,
                    "p_table": table.name,
                    "p_key": {column: row[column] for column in table.key},
                    "p_xmin": row.get(XMIN) if guard is None else None,
                    "p_guard": guard,
                    "p_patch": dict(patch),
                },
            )
        except Exception as error:
            if isinstance(error, APIError) and error.code == _FENCED_OFF:
                self._lease.lose()
                return "left", "the lease was lost"
            if _is_refusal(error):
                raise
            return None, _UNSURE
        if written:
            return None, ""
        return (yield from _after_nothing(table, row, patch))


def _is_refusal(error: Exception) -> bool:
    """Whether nothing was written, and another try would end the same; otherwise, who knows."""
    return isinstance(error, APIError) and not classify(error).is_outage


def _after_nothing(table: Table, row: Mapping[str, Any], patch: Mapping[str, Any]) -> Plan[Written]:
    """No row was written: another was quicker, or a repeat of a request met its own first try."""
    found = yield Read(table.with_keys([table.key_of(row)]))
    if found and all(found[0].get(column) == value for column, value in patch.items()):
        return None, ""
    return "cas_lost", "somebody else has written the row"
