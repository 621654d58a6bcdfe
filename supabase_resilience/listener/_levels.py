"""The levels of recovery that a listener can be given, and what each needs."""

from dataclasses import dataclass
from typing import Literal, Self

from supabase_resilience._checks import check_number, check_text

__all__ = ["Level", "Recovery"]

Level = Literal["by_column", "versioned", "change_log"]


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a listener finds the changes that Realtime did not deliver.

    Made by `by_column()`, `versioned()` or `change_log()`; `RealtimeListener(recovery=None)` finds
    none. All levels read what the listener's key may see, and rely on triggers that run: not on a
    `session_replication_role = replica`, nor on a restored backup.
    """

    level: Level
    column: str | None = None
    overlap: float = 0.0
    key_diff: bool = False
    max_delete_share: float = 1.0

    @classmethod
    def by_column(
        cls,
        column: str = "updated_at",
        *,
        overlap: float = 30.0,
        key_diff: bool = False,
        max_delete_share: float = 0.2,
    ) -> Self:
        """Every row's final state, unless a writing transaction outlasts `overlap` seconds.

        The same is so for a change that Realtime, or `overflow="block"`, holds back for longer.

        `column` must grow with every write: a timestamp that a trigger sets, or a number (`overlap`
        then counts in its unit). Rows in which it is NULL are found only by a full pass. Deletes
        are found with `key_diff=True`: each catch-up then reads all keys, and stops with an event
        when more than `max_delete_share` of those known seem gone; deletes while no process
        listened stay unknown.

        Raises `ValueError` and `TypeError` for arguments that make no sense.
        """
        check_text("column", column)
        check_number("overlap", overlap, at_least=0)
        return cls(
            "by_column", column, float(overlap), *_deletes(max_delete_share, key_diff=key_diff)
        )

    @classmethod
    def versioned(cls, *, key_diff: bool = False, max_delete_share: float = 0.2) -> Self:
        """Every row's final state, and every delete.

        Needs our migration: `python -m supabase_resilience sql listener --table …`. Deletes are
        told by tombstones, which only the secret key may read (no policy can be evaluated on a
        deleted row); with any other identity say `key_diff=True`, see `by_column()`.

        Raises `ValueError` and `TypeError` for arguments that make no sense.
        """
        return cls("versioned", None, 0.0, *_deletes(max_delete_share, key_diff=key_diff))

    @classmethod
    def change_log(cls) -> Self:
        """Every committed change, within the log's retention: each version, and every delete.

        Needs our migration: `python -m supabase_resilience sql listener --recovery change-log
        --table …`, and the secret key. A change that Realtime lost is told when it is found, which
        can be after a later change of its row: compare `change.version`.
        """
        return cls("change_log")


def _deletes(max_delete_share: float, *, key_diff: bool) -> tuple[bool, float]:
    if not isinstance(key_diff, bool):
        raise TypeError(f"key_diff must be True or False, got {key_diff!r}")
    check_number("max_delete_share", max_delete_share, at_least=0)
    if max_delete_share > 1:
        raise ValueError(f"max_delete_share must be <= 1, got {max_delete_share!r}")
    return key_diff, float(max_delete_share)
