"""What facts of a queue mean for the processor that works on it."""

from collections.abc import Iterator

from supabase_resilience.doctor._facts import ApiFacts, DatabaseFacts, Where
from supabase_resilience.doctor._findings import Finding, Severity
from supabase_resilience.doctor._subjects import QueueUse
from supabase_resilience.doctor._words import literal
from supabase_resilience.queues._migrated import VERSION

__all__ = ["check_queue"]

_GET_MIGRATION = "python -m supabase_resilience sql queue"
_EXPOSE = (
    'Dashboard, Integrations, Queues, Settings: switch on "Expose Queues via PostgREST". Or run '
    f"the SQL that `{_GET_MIGRATION}` prints: it needs no pgmq_public. On a server of your own:\n"
    "alter role authenticator set pgrst.db_schemas = 'public, graphql_public, pgmq_public';\n"
    "notify pgrst, 'reload config';"
)


def check_queue(use: QueueUse, api: ApiFacts, database: DatabaseFacts | None) -> Iterator[Finding]:
    """All checks of one queue, its lanes and its dead letters."""
    yield from _migration(use, api)
    found: dict[str, Where] = {queue: api.queues.get(queue, "unseen") for queue in use.queues}
    yield from _exposure(found)
    for queue, where in found.items():
        yield from _queue(use, queue, _known(queue, where, database), api)


def _migration(use: QueueUse, api: ApiFacts) -> Iterator[Finding]:
    subject, version = "sql queue", api.queue_version
    if version is not None and version >= VERSION:
        yield Finding("migration", "ok", subject, f"is there, version {version}")
    elif version is not None:
        what = f"the migration is of version {version}, {VERSION} is needed"
        why = "The queue works without it: no lease is extended, no priority kept."
        yield Finding("migration", "problem", subject, what, why, _GET_MIGRATION)
    elif api.queue_migration == "forbidden":
        return  # the finding about the key says it
    elif use.needs_migration:
        what = f"the migration is absent, and {use.name} needs it for {use.needs_migration}"
        why = "start() refuses to run the queue."
        yield Finding("migration", "problem", subject, what, why, _GET_MIGRATION)
    else:
        what = f"is not installed; {use.name} works without it (stock mode)"
        yield Finding("migration", "ok", subject, what)


def _exposure(found: dict[str, Where]) -> Iterator[Finding]:
    states = set(found.values())
    if "no_pgmq" in states:
        what = "Supabase Queues are not installed"
        fix = "create extension if not exists pgmq;"
        yield Finding("pgmq_public", "problem", "pgmq", what, "No queue can exist.", fix)
    elif states & {"not_exposed", "no_function"}:
        what = "the API does not serve pgmq_public"
        why = "Without it and without the migration no queue can be reached."
        yield Finding("pgmq_public", "problem", "pgmq_public", what, why, _EXPOSE)


def _known(queue: str, where: Where, database: DatabaseFacts | None) -> Where:
    """What the API could not tell, the catalogue does."""
    if where in {"there", "missing"} or database is None:
        return where
    return "there" if database.queues.get(queue) else "missing"


def _queue(use: QueueUse, queue: str, where: Where, api: ApiFacts) -> Iterator[Finding]:
    if where == "there":
        yield Finding("queue", "ok", queue, "is there")
    elif where == "missing":
        role, why = _role_of(use, queue)
        fix = _creation(use, queue, api)
        yield Finding("queue", "problem", queue, f"the {role} does not exist", why, fix)
    elif where != "no_pgmq":
        severity: Severity = "unseen"
        fix = "Give --dsn, or set DATABASE_DSN."
        yield Finding("queue", severity, queue, "could not be looked at", fix=fix)


def _role_of(use: QueueUse, queue: str) -> tuple[str, str]:
    if queue == use.name:
        return "queue", "No job can be sent or taken."
    if queue == f"{use.name}_dead":
        return (
            "queue of dead letters",
            "A job that has failed for good cannot be put aside; start() refuses to run.",
        )
    return "lane", "Jobs of its priority cannot be sent; start() refuses to run."


def _creation(use: QueueUse, queue: str, api: ApiFacts) -> str:
    if api.queue_version is None or api.queue_version < VERSION:
        return f"select pgmq.create({literal(queue)});"
    function = "public.supabase_resilience_queue_create"
    if queue in {use.name, f"{use.name}_dead"}:
        return f"select {function}({literal(use.name)});"
    return f"select {function}({literal(queue)}, false);"
