"""What facts of a table mean for the listener or the verification that works on it."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from supabase_resilience.doctor._facts import (
    ApiFacts,
    DatabaseFacts,
    RelationFacts,
    TableAnswer,
)
from supabase_resilience.doctor._findings import Finding, Severity
from supabase_resilience.doctor._subjects import TableUse
from supabase_resilience.doctor._words import (
    columns,
    identifier,
    migration_command,
    relation,
)
from supabase_resilience.listener._passes import MIGRATION

__all__ = ["check_table"]

_NAME_LIMIT = 63  # bytes of a PostgreSQL name
_TABLES = {"r", "p"}


def check_table(use: TableUse, api: ApiFacts, database: DatabaseFacts | None) -> Iterator[Finding]:
    """All checks of one table."""
    answer = api.tables.get(use)
    if answer is not None:
        yield from _answer(use, answer, api.key.role or "anon")
        yield from _listener_migration(use, answer)
    yield from _other_migrations(use, api)
    yield from _token(use)
    if database is None:
        return
    found = database.relations.get((use.schema, use.table))
    if found is None:
        if answer is not None and answer.refusal is None:
            yield _other_database(use)
        return
    if use.by == "listener":
        yield from _publication(use, database, found)
        yield from _identity(use, found)
    yield from _access(use, api, database, found)
    yield from _index(use, answer, found)


# --- through the API ------------------------------------------------------------------------------


def _answer(use: TableUse, answer: TableAnswer, role: str) -> Iterator[Finding]:
    name = use.name
    if answer.refusal in {"PGRST205", "42P01"}:
        fix = "notify pgrst, 'reload schema';\n-- if the table is there; else correct its name"
        what = "is not a table that the API knows"
        yield Finding("table", "problem", name, what, f"The {use.by} cannot read it.", fix)
    elif answer.refusal == "PGRST106":
        yield _unexposed(use)
    elif answer.refusal == "42501":
        yield _no_right(use, role)
    elif answer.refusal is not None:
        what = f"could not be read ({answer.refusal})"
        yield Finding("table", "unseen", name, what, fix=f"Try again: {answer.told or 'no text'}")
    elif answer.missing:
        yield from (_no_column(use, column) for column in _unexplained(use, answer))
    else:
        yield Finding("table", "ok", name, "can be read through the API")
    yield from _cap(use, answer)


def _unexposed(use: TableUse) -> Finding:
    what = f"is in the schema {use.schema}, which the API does not serve"
    fix = (
        f"Dashboard, Project Settings, Data API, Exposed schemas: add {use.schema}. "
        "On a server of your own, add it to pgrst.db_schemas of the role authenticator."
    )
    return Finding("schema", "problem", use.name, what, f"The {use.by} cannot read it.", fix)


def _no_right(use: TableUse, role: str) -> Finding:
    fix = (
        f"grant usage on schema {identifier(use.schema)} to {identifier(role)};\n"
        f"grant select on {relation(use.schema, use.table)} to {identifier(role)};"
    )
    what = f"may not be read by {role}"
    return Finding("privilege", "problem", use.name, what, f"The {use.by} cannot read it.", fix)


def _unexplained(use: TableUse, answer: TableAnswer) -> list[str]:
    """The missing columns, but those of a migration that is missing itself."""
    is_unfollowed = answer.horizon is not None and _unfollowed(use, answer.horizon) is not None
    return [
        column for column in answer.missing if not (is_unfollowed and column.startswith("sync_"))
    ]


def _no_column(use: TableUse, column: str) -> Finding:
    what = f"has no column {column}"
    if use.level == "versioned" and column == "sync_xid":
        why, fix = "Recovery.versioned() reads by it.", _listener_fix(use)
    elif column == use.column:
        why = f"The {use.by} reads by it what has changed."
        fix = (
            f"alter table {relation(use.schema, use.table)}\n  add column {identifier(column)} "
            "timestamptz not null default now();\n"
            "-- and a trigger that sets it with each update: see moddatetime"
        )
    else:
        why = f"It is in id_column, by which the {use.by} knows rows."
        fix = "Correct id_column."
    return Finding("column", "problem", use.name, what, why, fix)


def _cap(use: TableUse, answer: TableAnswer) -> Iterator[Finding]:
    if answer.cap is None:
        return
    what = f"answers are cut off at {answer.cap} rows; the {use.by} asks for {use.page}"
    why = (
        "The API does not say that it cut. This package reads on, in more and smaller pages; "
        "a select() of your own that expects all rows silently gets the first."
    )
    fix = (
        f"Set batch_size to {answer.cap} at most, or raise the cap: dashboard, Project Settings, "
        f"Data API, Max rows (PGRST_DB_MAX_ROWS on a server of your own), to {use.page}."
    )
    yield Finding("row_cap", "warning", use.name, what, why, fix)


# --- migrations -----------------------------------------------------------------------------------


def _listener_migration(use: TableUse, answer: TableAnswer) -> Iterator[Finding]:
    horizon = answer.horizon
    if horizon is None or use.level is None:
        return
    wrong = _unfollowed(use, horizon)
    if wrong is None:
        yield Finding("migration", "ok", use.name, "sql listener is there")
        return
    severity: Severity = "problem"
    if isinstance(horizon, str) and horizon not in {"PGRST202", "42501"}:
        severity = "unseen"
    why = f"Recovery.{use.level}() cannot find again what Realtime lost."
    yield Finding("migration", severity, use.name, wrong, why, _listener_fix(use))


def _unfollowed(use: TableUse, horizon: Mapping[str, Any] | str) -> str | None:
    """What is wrong with the listener's migration."""
    if isinstance(horizon, str):
        absent = "the migration `sql listener` is absent"
        return absent if horizon == "PGRST202" else f"the migration answers {horizon}"
    told, recovery = horizon.get("migration"), horizon.get("recovery")
    if told != MIGRATION:
        return f"the migration `sql listener` is of version {told}, {MIGRATION} is needed"
    if recovery is None:
        return "is not followed: its triggers are missing or disabled"
    if recovery != use.level:
        return f"is followed by {recovery}, not by {use.level}"
    key = horizon.get("key") or []
    if use.key and use.level == "versioned" and list(use.key) != list(key):
        return f"is followed by the key {', '.join(key)}, not by id_column {', '.join(use.key)}"
    return None


def _listener_fix(use: TableUse) -> str:
    """The command: its SQL may be run as it is, and again."""
    return migration_command(use.schema, use.table, use.level or "", use.key or ("id",))


def _other_migrations(use: TableUse, api: ApiFacts) -> Iterator[Finding]:
    wanted = (
        ("cursors", use.has_table_cursor, api.cursors, "A TableCursor keeps its place there."),
        ("verification", use.lease, api.leases, "lease= is a row of its table."),
    )
    for name, is_needed, installed, why in wanted:
        if not is_needed:
            continue
        subject, fix = f"sql {name}", f"python -m supabase_resilience sql {name}"
        if installed == "yes":
            yield Finding("migration", "ok", subject, "is there")
        elif installed == "no":
            what = f"the migration is absent, and the {use.by} of {use.name} needs it"
            yield Finding("migration", "problem", subject, what, why, fix)
        elif installed is None:
            yield Finding("migration", "unseen", subject, "could not be looked at")
        # Forbidden: the finding about the key says it.


def _token(use: TableUse) -> Iterator[Finding]:
    if not use.reads_records or use.role in {None, "service_role"}:
        return
    what = f"token= makes its listener {use.role}, and Recovery.{use.level}() needs service_role"
    why = "No policy can be evaluated on a deleted row, so nobody else may read what was recorded."
    fix = "Leave out token=, or recover by Recovery.versioned(key_diff=True)."
    yield Finding("key", "problem", use.name, what, why, fix)


# --- through the database -------------------------------------------------------------------------


def _other_database(use: TableUse) -> Finding:
    what = "is known to the API and is not in the database of the DSN"
    why = "The DSN names another database: what is said from it is about that one."
    return Finding("dsn", "problem", use.name, what, why, "Take the DSN of the same project.")


def _publication(use: TableUse, database: DatabaseFacts, found: RelationFacts) -> Iterator[Finding]:
    schema, table = use.published
    name, target = f"{schema}.{table}", relation(schema, table)
    why = "Realtime tells of no change of it: the listener hears nothing, without an error."
    published = database.relations.get((schema, table))
    if found.kind not in _TABLES:
        what, fix = "is not a table", "Listen to the table that it reads."
        yield Finding("publication", "problem", name, what, why, fix)
    elif not database.has_publication:
        what = "the publication supabase_realtime does not exist"
        fix = f"create publication supabase_realtime for table {target};"
        yield Finding("publication", "problem", name, what, why, fix)
    elif published is None:
        return  # the finding about the migration says it
    elif not published.is_published:
        what = "is not in the publication supabase_realtime"
        fix = f"alter publication supabase_realtime add table {target};"
        yield Finding("publication", "problem", name, what, why, fix)
    elif database.unpublished_kinds:
        what = f"the publication leaves out every {' and '.join(database.unpublished_kinds)}"
        fix = (
            "alter publication supabase_realtime\n"
            "  set (publish = 'insert, update, delete, truncate');"
        )
        why = "Realtime never tells of these changes."
        yield Finding("publication", "problem", "supabase_realtime", what, why, fix)
    else:
        yield Finding("publication", "ok", name, "is in supabase_realtime")


def _identity(use: TableUse, found: RelationFacts) -> Iterator[Finding]:
    target = relation(use.schema, use.table)
    has_none = found.identity == "n" or (found.identity == "d" and not found.has_primary_key)
    full = f"alter table {target} replica identity full;"
    if has_none and found.is_published:
        fix = f"alter table {target} replica identity default;" if found.has_primary_key else full
        what = "has no replica identity"
        why = "As the table is published, PostgreSQL refuses every UPDATE and DELETE on it."
        yield Finding("replica_identity", "problem", use.name, what, why, fix)
        return
    unseen = _unmatched_filter(use, found)
    if not unseen:
        yield Finding("replica_identity", "ok", use.name, "tells what the listener needs")
        return
    what = f"the replica identity leaves out {', '.join(unseen)}, which filter= reads"
    why = "A DELETE bears only the key, so the filter never lets one through."
    if not use.finds_deletes:
        why += " Nothing else finds deletes here: no recovery, or one without key_diff=True."
    severity: Severity = "problem" if use.event == "DELETE" else "warning"
    yield Finding("replica_identity", severity, use.name, what, why, full)


def _unmatched_filter(use: TableUse, found: RelationFacts) -> list[str]:
    """Columns of the filter that a delete does not bear, where only Realtime tells of deletes."""
    if use.event not in {"*", "DELETE"} or found.identity == "f" or use.level == "change_log":
        return []
    if use.finds_deletes and use.event != "DELETE":
        return []
    return [column for column in use.filter_columns if column not in found.key]


def _access(
    use: TableUse, api: ApiFacts, database: DatabaseFacts, found: RelationFacts
) -> Iterator[Finding]:
    role = use.role or api.key.role
    facts = database.roles.get(role or "")
    if role is None or facts is None:
        return
    name = (use.schema, use.table)
    if not facts.may_read.get(name, True) and use.role is not None:
        yield _no_right(use, role)  # of the key's own role the API has said it
        return
    if not found.has_security or facts.bypasses:
        yield Finding("policy", "ok", use.name, f"row level security hides nothing from {role}")
    elif facts.has_policy.get(name, False):
        yield Finding("policy", "ok", use.name, f"has a policy by which {role} may read")
    else:
        what = f"has row level security and no policy by which {role} may read"
        why = f"No row is visible to the {use.by}, and no change: all is empty, without an error."
        fix = (
            f"create policy {identifier(f'{role} may read')} on {relation(*name)}\n"
            f"  for select to {identifier(role)} using (true);\n"
            "-- true shows every row; narrow it to what this role may see"
        )
        yield Finding("policy", "problem", use.name, what, why, fix)


def _index(use: TableUse, answer: TableAnswer | None, found: RelationFacts) -> Iterator[Finding]:
    column = use.column
    if column is None or found.kind not in _TABLES or (answer and column in answer.missing):
        return
    if column in found.leading:
        yield Finding("index", "ok", use.name, f"has an index that begins with {column}")
        return
    key = [each for each in (use.key or found.key) if each != column]
    # A partitioned table takes none concurrently.
    how = "concurrently if not exists" if found.kind == "r" else "if not exists"
    fix = (
        f"create index {how} {identifier(_index_name(use.table, [column, *key]))}\n"
        f"  on {relation(use.schema, use.table)} ({columns([column, *key])});"
    )
    what = f"has no index that begins with {column}"
    why = f"Each time the {use.by} looks for changes, the whole table is read and sorted."
    yield Finding("index", "problem", use.name, what, why, fix)


def _index_name(table: str, names: list[str]) -> str:
    name = "_".join([table, *names, "idx"])
    if len(name.encode()) <= _NAME_LIMIT:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{table.encode()[:40].decode(errors='ignore')}_{digest}_idx"
