"""What facts of the project mean: its key, clock, versions, timeouts, and Realtime's limits.

Decisions only. A check yields what is wrong, with the fix, or else that all is well.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from supabase_resilience.doctor._facts import ApiFacts, DatabaseFacts
from supabase_resilience.doctor._findings import Finding, Severity
from supabase_resilience.doctor._subjects import Subjects, TableUse
from supabase_resilience.doctor._words import identifier

__all__ = ["Limits", "check_project", "roles_in_use"]

_KEY = "SUPABASE_KEY"
_TAKE_SECRET = (
    "Take a secret key (sb_secret_…) from the dashboard, Project Settings, API Keys, and set "
    f"{_KEY} to it where only servers read it."
)
_SOON = 30 * 86_400.0
_SKEW_NOTED, _SKEW_BREAKS = 5.0, 30.0
_SHORTEST_TIMEOUT, _LONGEST_TIMEOUT = 1.0, 60.0
# A minute is what Realtime averages over.
_AVERAGED = 60.0
_API_ROLES = ("anon", "authenticated", "service_role")
_PACKAGES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "supabase": ((2, 34), (3,)),
    "realtime": ((2, 34), (3,)),
}
_OLDEST_POSTGREST, _OLDEST_POSTGRES, _OLDEST_PGMQ = (12,), 150_000, (1, 4, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What Realtime allows the project, and how many processes run the same parts."""

    processes: int = 1
    rate: float = 100.0
    connections: int = 200


def check_project(
    subjects: Subjects,
    api: ApiFacts,
    database: DatabaseFacts | None,
    limits: Limits,
    installed: Mapping[str, str],
) -> Iterator[Finding]:
    """All that is not about one table or queue."""
    yield from _key(subjects, api)
    yield from _clocks(api, database)
    yield from _versions(api, database, installed)
    if database is not None:
        yield from _timeouts(subjects, api, database)
    if subjects.listeners:
        yield from _connections(subjects, limits)
        yield from _rate(subjects, database, limits)


def roles_in_use(subjects: Subjects, api: ApiFacts) -> list[str]:
    """The roles as which requests of the parts run."""
    roles = (use.role or api.key.role for use in subjects.tables)
    return [role for role in dict.fromkeys(chain(roles, [api.key.role])) if role]


# --- the key --------------------------------------------------------------------------------------


def _key(subjects: Subjects, api: ApiFacts) -> Iterator[Finding]:
    problem = _bad_key(api) or _weak_key(subjects, api)
    if problem is not None:
        yield problem
        return
    if api.key.kind == "legacy":
        yield _aging_key(api)
    else:
        yield Finding("key", "ok", _KEY, f"is a {api.key.kind} key (role {api.key.role})")


def _bad_key(api: ApiFacts) -> Finding | None:
    key = api.key
    if key.project and key.url_project and key.project != key.url_project:
        what = f"is a key of the project {key.project}, and SUPABASE_URL is {key.url_project}"
        fix = f"Take URL and key from the same project: set SUPABASE_URL or {_KEY}."
        return Finding("key", "problem", _KEY, what, "Every request is refused.", fix)
    if key.expires_at is not None and key.expires_at <= api.now:
        what = f"is a JWT that expired {_ago(api.now - key.expires_at)} ago"
        return Finding("key", "problem", _KEY, what, "Every request is refused.", _TAKE_SECRET)
    if api.is_refused:
        what = f"was refused by the project (kind: {key.kind})"
        why = "It is another project's, was revoked, or is misspelled: every request is refused."
        return Finding("key", "problem", _KEY, what, why, _TAKE_SECRET)
    if key.kind == "user":
        why = "It expires, and everything stops with it; a key does not name a user."
        return Finding("key", "problem", _KEY, "is a user's access token", why, _TAKE_SECRET)
    return None


def _ago(seconds: float) -> str:
    return f"{seconds / 86_400:.0f} days" if seconds > 2 * 86_400 else f"{seconds:.0f} s"


def _weak_key(subjects: Subjects, api: ApiFacts) -> Finding | None:
    if api.key.role == "service_role":
        return None
    needing = [f"the queue {use.name}" for use in subjects.queues if use.is_worked_on]
    needing += [f"the {use.by} of {use.name}" for use in subjects.tables if use.needs_secret]
    what = f"is a {api.key.kind} key (role {api.key.role})"
    if needing:
        why = f"A secret key is needed by {', '.join(dict.fromkeys(needing))}."
        return Finding("key", "problem", _KEY, what, why, _TAKE_SECRET)
    verified = [use.name for use in subjects.tables if use.by == "verification" and not use.role]
    if verified:
        why = f"The verification of {', '.join(verified)} sees only what row level security shows."
        return Finding("key", "warning", _KEY, what, why, _TAKE_SECRET)
    return None


def _aging_key(api: ApiFacts) -> Finding:
    what = f"is a legacy JWT key (role {api.key.role})"
    if api.key.expires_at is not None and api.key.expires_at - api.now < _SOON:
        what += f", which expires in {_ago(api.key.expires_at - api.now)}"
    why = "It can be revoked only together with all others, which also ends every user's session."
    return Finding("key", "warning", _KEY, what, why, _TAKE_SECRET)


# --- clocks ---------------------------------------------------------------------------------------


def _clocks(api: ApiFacts, database: DatabaseFacts | None) -> Iterator[Finding]:
    skews = {"the API": api.skew, "the database": database.skew if database else None}
    for subject, skew in skews.items():
        if skew is not None:
            yield _clock(subject, skew)
    if api.skew is None:
        yield Finding("clock", "unseen", "the API", "its answers bear no date")


def _clock(subject: str, skew: float) -> Finding:
    if abs(skew) < _SKEW_NOTED:
        return Finding("clock", "ok", subject, "has this machine's time")
    what = f"this machine's clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
    why = (
        f"Tokens are refused when clocks differ by {_SKEW_BREAKS:.0f} s; ages of jobs and the "
        "times of Retry-After are wrong by the difference."
    )
    severity: Severity = "problem" if abs(skew) >= _SKEW_BREAKS else "warning"
    return Finding("clock", severity, subject, what, why, "sudo timedatectl set-ntp true")


# --- versions -------------------------------------------------------------------------------------


def _versions(
    api: ApiFacts, database: DatabaseFacts | None, installed: Mapping[str, str]
) -> Iterator[Finding]:
    for package, (first, end) in _PACKAGES.items():
        version = installed.get(package, "")
        if first <= _numbers(version) < end:
            yield Finding("versions", "ok", package, f"{version} is supported")
        else:
            wanted = f"{package}>={_dotted(first)},<{_dotted(end)}"
            yield _outdated(package, version, wanted, f'pip install "{wanted}"')
    yield from _rest_version(api)
    if database is not None:
        yield from _database_versions(database)


def _rest_version(api: ApiFacts) -> Iterator[Finding]:
    if api.rest_version is None:
        yield Finding("versions", "unseen", "PostgREST", "the gateway does not tell its version")
    elif _numbers(api.rest_version) < _OLDEST_POSTGREST:
        yield _outdated("PostgREST", api.rest_version, "PostgREST 12 or newer", _UPGRADE)
    else:
        yield Finding("versions", "ok", "PostgREST", f"{api.rest_version} is supported")


def _database_versions(database: DatabaseFacts) -> Iterator[Finding]:
    version = f"{database.version // 10_000}.{database.version % 10_000}"
    if database.version < _OLDEST_POSTGRES:
        yield _outdated("PostgreSQL", version, "PostgreSQL 15 or newer", _UPGRADE)
    else:
        yield Finding("versions", "ok", "PostgreSQL", f"{version} is supported")
    if database.pgmq is None:
        return
    if _numbers(database.pgmq) < _OLDEST_PGMQ:
        yield _outdated(
            "pgmq", database.pgmq, "pgmq 1.4.4 or newer", "alter extension pgmq update;"
        )
    else:
        yield Finding("versions", "ok", "pgmq", f"{database.pgmq} is supported")


_UPGRADE = "Upgrade the project: dashboard, Project Settings, Infrastructure."


def _outdated(subject: str, version: str, wanted: str, fix: str) -> Finding:
    what = f"{version or 'none'} is installed; supported is {wanted}"
    why = "This package leans on what other versions do otherwise, or do not have."
    return Finding("versions", "problem", subject, what, why, fix)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers: `2.34.1rc1` is (2, 34)."""
    found: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


# --- statement timeouts ---------------------------------------------------------------------------


def _timeouts(subjects: Subjects, api: ApiFacts, database: DatabaseFacts) -> Iterator[Finding]:
    used = roles_in_use(subjects, api)
    for role in dict.fromkeys([*_API_ROLES, *used]):
        if facts := database.roles.get(role):
            yield _timeout(role, facts.timeout, is_used=role in used)


def _timeout(role: str, seconds: float, *, is_used: bool) -> Finding:
    fix = (
        f"alter role {identifier(role)} set statement_timeout = '8s';\n"
        "notify pgrst, 'reload config';"
    )
    if seconds == 0:
        why = "Nothing ends a query whose caller has gone; a few of them keep the API's whole pool."
        return Finding("statement_timeout", "problem", role, "has no statement timeout", why, fix)
    if is_used and seconds < _SHORTEST_TIMEOUT:
        what = f"has a statement timeout of {seconds:g} s"
        why = "Pages aim at half a second each, and a first page or a slow moment takes longer."
        return Finding("statement_timeout", "problem", role, what, why, fix)
    if is_used and seconds > _LONGEST_TIMEOUT:
        what = f"has a statement timeout of {seconds:g} s"
        why = "The API gives up after 60 s, and the query goes on without anybody to read it."
        return Finding("statement_timeout", "warning", role, what, why, fix)
    return Finding("statement_timeout", "ok", role, f"queries end after {seconds:g} s")


# --- what Realtime allows -------------------------------------------------------------------------


def _connections(subjects: Subjects, limits: Limits) -> Iterator[Finding]:
    count = len(subjects.listeners) * limits.processes
    what = f"{count} listeners, each with a connection; {limits.connections} are allowed"
    if count <= limits.connections:
        yield Finding("realtime_connections", "ok", "Realtime", what)
        return
    why = "Those that come last are refused, and find changes by catching up only."
    yield Finding("realtime_connections", "problem", "Realtime", what, why, _ONE_LISTENER)


_ONE_LISTENER = (
    "Run the listeners in one process of the fleet, and let it hand the changes on through a "
    "queue; or raise the limit of the plan (then say so: --realtime-rate, --realtime-connections)."
)


def _rate(subjects: Subjects, database: DatabaseFacts | None, limits: Limits) -> Iterator[Finding]:
    if database is None:
        return
    tables = {(use.schema, use.table): use for use in subjects.listeners}
    told = {
        use.name: _changes_per_second(use, subjects, database, limits) for use in tables.values()
    }
    total = sum(told.values())
    what = (
        f"{total:.1f} changes a second on average, for all subscribers; {limits.rate:g} are allowed"
    )
    if total <= limits.rate:
        yield Finding("realtime_rate", "ok", "Realtime", what)
        return
    most = max(told, key=lambda name: told[name])
    why = (
        f"Above it Realtime drops everybody's changes for a minute, without a word; most come from "
        f"{most}. Listeners then find them only when they catch up."
    )
    yield Finding("realtime_rate", "problem", "Realtime", what, why, _ONE_LISTENER)


def _changes_per_second(
    use: TableUse, subjects: Subjects, database: DatabaseFacts, limits: Limits
) -> float:
    """Of one table, once for each that is told of it."""
    relation = database.relations.get((use.schema, use.table))
    if relation is None:
        return 0.0
    ours = sum(other.name == use.name for other in subjects.listeners) * limits.processes
    return relation.writes / max(database.seconds, _AVERAGED) * max(ours, relation.subscribers)
