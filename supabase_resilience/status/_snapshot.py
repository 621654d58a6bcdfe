"""One moment of everything, ready for JSON: what `/status.json` answers and the page shows.

Names, counts, ages and reasons; never a row, a job's data or a key.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from supabase_resilience import _clock
from supabase_resilience._health import Health, Stats
from supabase_resilience.status._backlog import Backlog, Known
from supabase_resilience.status._log import EventLog
from supabase_resilience.together import AsyncResilience, Resilience
from supabase_resilience.verification import Report

__all__ = ["VERSION", "Snapshot", "take"]

VERSION = 1
"""Of the shape; a field may be added without a new one."""

Snapshot = Mapping[str, Any]


def take(
    resilience: Resilience | AsyncResilience, *, title: str, log: EventLog | None, backlog: Backlog
) -> Snapshot:
    """The state now."""
    stats = resilience.get_stats()
    return {
        "version": VERSION,
        "at": _clock.wall(),
        "title": title,
        "is_active": resilience.is_active(),
        "health": _health(resilience.health()),
        "stats": {name: _stats(each) for name, each in stats.items()},
        "queues": {name: _queue(known) for name, known in backlog.look().items()},
        "alerts_firing": list(resilience.alerts_firing()),
        "failures": None if log is None else [asdict(each) for each in log.failures()],
        "events": None if log is None else _events(log),
    }


def _health(health: Health) -> dict[str, Any]:
    return {"status": health.status, "parts": [asdict(part) for part in health.parts]}


def _stats(stats: Stats) -> dict[str, Any]:
    # Not `asdict`: it would copy all problems of a report.
    return {field.name: _plain(getattr(stats, field.name)) for field in fields(stats)}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    if isinstance(value, Report):
        return _report(value)
    if isinstance(value, Mapping):
        return {str(key): _stats(each) for key, each in value.items()}
    return value


def _report(report: Report) -> dict[str, Any]:
    return {
        "started_at": report.started_at.timestamp(),
        "seconds": report.seconds,
        "rows": report.rows,
        "violations": report.violations,
        "fixed": report.fixed,
        "open": report.open,
        "is_incremental": report.is_incremental,
        "is_dry_run": report.is_dry_run,
        "aborted": report.aborted,
        "failure": report.failure,
        "rules": [
            {
                "name": rule.name,
                "severity": rule.severity,
                "violations": rule.violations,
                "fixed": rule.fates["fixed"],
                "open": rule.open,
                "fates": dict(rule.fates),
            }
            for rule in list(report.rules.values())
        ],
    }


def _queue(known: Known) -> dict[str, Any]:
    metrics = known.metrics
    return {
        "ready": None if metrics is None else metrics.ready,
        "delayed": None if metrics is None else metrics.delayed,
        "oldest_age": None if metrics is None else metrics.oldest_age,
        "dead": None if metrics is None else metrics.dead,
        "at": known.at,
        "failure": known.failure,
    }


def _events(log: EventLog) -> list[dict[str, Any]]:
    return [
        {
            "at": each.at,
            "name": each.name,
            "severity": logging.getLevelName(each.severity).lower(),
            "facts": {key: _plain(value) for key, value in each.facts.items()},
        }
        for each in log.events()
    ]
