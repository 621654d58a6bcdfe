"""The entries of the change log, live and read, as changes of the table that they tell of."""

from collections.abc import Mapping
from typing import Any

from supabase_resilience.listener._changes import Seen, Shape

__all__ = ["LOG_SCHEMA", "LOG_TABLE", "LogShape"]

LOG_SCHEMA = "supabase_resilience"
LOG_TABLE = "changes"


class LogShape:
    """Reads entries of the log of one table."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def read(self, row: Mapping[str, Any]) -> Seen:
        """An entry that was read."""
        return self._seen(row, row["at"], raw=row, partial=False)

    def live(self, payload: Mapping[str, Any]) -> Seen | None:
        """A frame; None when it tells of another table."""
        data = payload["data"]
        row = data.get("record") or {}
        if row.get("schema_name") != self._shape.schema or row["table_name"] != self._shape.table:
            return None
        partial = bool(data["errors"]) or len(row) < len(data["columns"])
        return self._seen(row, data["commit_timestamp"], raw=payload, partial=partial)

    def _seen(
        self, row: Mapping[str, Any], at: str | None, *, raw: Mapping[str, Any], partial: bool
    ) -> Seen:
        values = row.get("key")
        key = None
        if values is not None:
            key = self._shape.key_of(dict(zip(self._shape.key, values, strict=True)))
        return Seen(
            row["op"],
            key,
            row.get("new") or {},
            row.get("old") or {},
            row["seq"],
            row["xid"],
            at,
            partial,
            raw,
        )
