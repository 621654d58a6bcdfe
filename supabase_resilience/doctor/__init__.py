"""The doctor: what in a project keeps the parts of an app from working, each with its fix.

It looks through the API, and through a connection to the database when it gets one; whatever it
could not see it says. Facts are gathered apart from what they mean: `_api` and `_dsn` look,
`_checks`, `_table_checks` and `_queue_checks` judge.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from supabase_resilience import _clock
from supabase_resilience._checks import check_count, check_seconds, check_text
from supabase_resilience.doctor._api import look_at_api
from supabase_resilience.doctor._checks import Limits, check_project, roles_in_use
from supabase_resilience.doctor._dsn import look_at_database
from supabase_resilience.doctor._facts import ApiFacts, DatabaseFacts
from supabase_resilience.doctor._findings import Diagnosis, DoctorError, Finding, Severity
from supabase_resilience.doctor._queue_checks import check_queue
from supabase_resilience.doctor._subjects import QueueUse, Subjects, named_table, subjects_of
from supabase_resilience.doctor._table_checks import check_table

__all__ = ["Diagnosis", "DoctorError", "Finding", "Severity", "diagnose"]

_GIVE_DSN = "Give --dsn, or set DATABASE_DSN (a read-only role will do)."


def diagnose(
    *parts: Any,
    url: str,
    key: str,
    dsn: str | None = None,
    tables: Sequence[str | tuple[str, str]] = (),
    queues: Sequence[str] = (),
    lanes: Sequence[str] = (),
    cursor_column: str | None = None,
    processes: int = 1,
    realtime_rate: float = 100.0,
    realtime_connections: int = 200,
    timeout: float = 10.0,
    clock: _clock.Clock = _clock.wall,
) -> Diagnosis:
    """Look at a project without changing anything in it; blocks while it looks.

    The API gets GET requests only, the database one read-only transaction. To see whether answers
    are cut off, up to a page of keys is read; nothing of it is kept.

    - `parts`: listeners, verifications, queues, clients, or a `Resilience` with all of them. They
      tell their tables, queues, lanes and columns; they need not run.
    - `url`, `key`: of the project. `dsn`: of its database; publications, policies, indexes and
      timeouts are visible only there.
    - `tables`: more tables, `"orders"`, `"shop.orders"` or `("shop", "orders")`, looked at as for a
      listener that recovers by `cursor_column` (`sync_xid`: the listener's migration).
    - `queues`: more queues, each with `lanes`, the suffixes of its lanes.
    - `processes`: how many processes run these parts. `realtime_rate` (changes times
      subscribers a second) and `realtime_connections`: what the plan allows.
    - `timeout`: seconds for each request and query.

    Raises `DoctorError` when the API or the database does not answer, `TypeError` for what is no
    part.
    """
    check_text("url", url)
    check_text("key", key)
    check_seconds("timeout", timeout)
    for name, value in (("processes", processes), ("realtime_connections", realtime_connections)):
        check_count(name, value)
    check_seconds("realtime_rate", realtime_rate)
    subjects = subjects_of(parts)
    subjects.tables += [named_table(*_split(table), cursor_column) for table in tables]
    subjects.queues += [QueueUse(name=queue, lanes=tuple(lanes)) for queue in queues]
    api = look_at_api(subjects, url=url, key=key, timeout=timeout, clock=clock)
    database = None
    if dsn is not None:
        roles = roles_in_use(subjects, api)
        database = look_at_database(subjects, dsn=dsn, roles=roles, timeout=timeout, clock=clock)
    limits = Limits(processes=processes, rate=realtime_rate, connections=realtime_connections)
    return Diagnosis.of(_findings(subjects, api, database, limits))


def _split(table: str | tuple[str, str]) -> tuple[str, str]:
    if not isinstance(table, str):
        return table
    schema, dot, name = table.partition(".")
    return (schema, name) if dot else ("public", table)


def _findings(
    subjects: Subjects, api: ApiFacts, database: DatabaseFacts | None, limits: Limits
) -> Iterator[Finding]:
    yield from check_project(subjects, api, database, limits, _installed())
    if api.is_refused:
        what = "nothing of the project was looked at, as it refused the key"
        yield Finding("api", "unseen", "the API", what, fix="Set the key right, then look again.")
    else:
        for table in subjects.tables:
            yield from check_table(table, api, database)
        for queue in subjects.queues:
            yield from check_queue(queue, api, database)
    yield from _unseen(subjects, database)


def _unseen(subjects: Subjects, database: DatabaseFacts | None) -> Iterator[Finding]:
    if database is None:
        what = "not looked at: " + ", ".join(_ONLY_DATABASE)
        yield Finding("dsn", "unseen", "the database", what, "No API shows these.", _GIVE_DSN)
    if subjects.listeners:
        what = "its version and what your plan allows are not visible; see --realtime-rate"
        yield Finding("versions", "unseen", "Realtime", what)


_ONLY_DATABASE = (
    "publication",
    "replica identity",
    "policies",
    "indexes",
    "statement timeouts",
    "Realtime's load",
    "versions of PostgreSQL and pgmq",
)


def _installed() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for package in ("supabase", "realtime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
