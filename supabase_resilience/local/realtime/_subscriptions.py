"""The live subscriptions, found by table.

A subscription holds the tables that matched its binding when it was made; a table published later
joins it when the publication is looked at again, as with the real server.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from supabase_resilience.local.realtime._filters import Filter
from supabase_resilience.local.realtime._pgoutput import ABSENT, Change
from supabase_resilience.local.realtime._sockets import Channel


@dataclass(frozen=True, slots=True)
class Subscription:
    """One binding that is being served, for changes committed at `since` or later."""

    id: int
    event: str
    select: tuple[str, ...] | None
    since: int
    tables: Mapping[int, tuple[Filter, ...]]

    def wants(self, change: Change, commit_lsn: int) -> bool:
        """Tell whether the change's kind and time fit."""
        return commit_lsn >= self.since and self.event in {"*", change.kind}

    def passes(self, change: Change) -> bool:
        """Tell whether the filters let the row pass; a DELETE is judged by its old row."""
        filters = self.tables[change.relation.oid]
        if not filters:
            return True
        row = (change.old if change.kind == "DELETE" else change.new) or ()
        names = (column.name for column in change.relation.columns)
        values = dict(zip(names, row, strict=False))
        return all(filter_.matches(values.get(filter_.spec.column, ABSENT)) for filter_ in filters)


class Subscriptions:
    """The subscriptions of all channels."""

    def __init__(self) -> None:
        self._by_channel: dict[Channel, tuple[Subscription, ...]] = {}
        self._by_table: dict[int, list[tuple[Channel, Subscription]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_channel.values()))

    def set(self, channel: Channel, subscriptions: Iterable[Subscription]) -> None:
        """Replace what the channel is subscribed to."""
        self._by_channel[channel] = tuple(subscriptions)
        self._index()

    def remove(self, channel: Channel) -> None:
        """Forget the channel."""
        if self._by_channel.pop(channel, None) is not None:
            self._index()

    def clear(self) -> None:
        """Forget all channels."""
        self._by_channel.clear()
        self._by_table.clear()

    def channels(self) -> list[Channel]:
        """Return the channels that are subscribed to anything."""
        return list(self._by_channel)

    def of_table(self, oid: int) -> list[tuple[Channel, Subscription]]:
        """Return who is subscribed to a table."""
        return self._by_table.get(oid, [])

    def _index(self) -> None:
        self._by_table.clear()
        for channel, subscriptions in self._by_channel.items():
            for subscription in subscriptions:
                for oid in subscription.tables:
                    self._by_table.setdefault(oid, []).append((channel, subscription))
