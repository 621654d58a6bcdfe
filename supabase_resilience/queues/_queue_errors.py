"""What PostgREST and pgmq say when a queue cannot work, in words for the person who sets it right.

Outages are not explained here: they pass by themselves. What is here does not, so each text ends in
what to do, as SQL where SQL does it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from postgrest.exceptions import APIError

from supabase_resilience.errors import QueueError
from supabase_resilience.failures import classify

__all__ = ["explained", "missing_queues", "quoted"]

_GET_MIGRATION = "python -m supabase_resilience sql queue"
_EXPOSE = (
    'Switch on Queues\' "Expose Queues via PostgREST" in the dashboard (Integrations, Queues, '
    f"Settings), or run the SQL that `{_GET_MIGRATION}` prints, which needs no pgmq_public."
)


def explained(error: APIError, arguments: Mapping[str, Any]) -> QueueError | None:
    """The `QueueError` to raise in place of an error of a queue's function; None for any other.

    `arguments` are those of the call.
    """
    if classify(error).is_outage:
        return None
    explain = _BY_CODE.get(error.code or "")
    text = explain(error.message or "", arguments) if explain else None
    return None if text is None else QueueError(text)


def missing_queues(names: Sequence[str], creations: Sequence[str] = ()) -> QueueError:
    """Queues that are not there; `creations` is the SQL, when it is not pgmq's own."""
    what = "a queue does not exist" if len(names) == 1 else "queues do not exist"
    shown = ", ".join(repr(name) for name in names)
    lines = creations or [f"select pgmq.create({quoted(name)});" for name in names]
    return QueueError("\n".join([f"{what}: {shown}. Run this SQL:", *lines]))


def quoted(text: str) -> str:
    """A literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


# --- by code --------------------------------------------------------------------------------------


def _no_table(message: str, arguments: Mapping[str, Any]) -> str | None:
    if not re.search(r'"pgmq\.', message):
        return f"our migration is not complete ({message}). {_run_migration()}"
    return str(missing_queues(_names(message, arguments)))


def _names(message: str, arguments: Mapping[str, Any]) -> list[str]:
    """Names of the missing queue: the argument whose table is named, else the table's own."""
    found = re.search(r'"pgmq\.q_(.+?)"', message)
    table = found[1] if found else ""
    given = [arguments.get("queue_name"), arguments.get("dead_queue"), *_listed(arguments)]
    names = [name for name in given if isinstance(name, str)]
    dead = [f"{name}_dead" for name in names]
    matching = [name for name in (*names, *dead) if name.lower() == table]
    return matching[:1] or [table or "".join(names[:1])]


def _listed(arguments: Mapping[str, Any]) -> list[Any]:
    listed = arguments.get("queues")
    return listed if isinstance(listed, list) else []


def _run_migration() -> str:
    return f"Run the SQL that `{_GET_MIGRATION}` prints again."


def _not_exposed(message: str, _: Mapping[str, Any]) -> str:
    return (
        f"the API does not serve the schema of the queues ({message}). {_EXPOSE} On a server of "
        "your own, add the schema to those that PostgREST serves:\n"
        "alter role authenticator set pgrst.db_schemas = 'public, graphql_public, pgmq_public';\n"
        "notify pgrst, 'reload config';"
    )


def _no_function(message: str, _: Mapping[str, Any]) -> str:
    if "supabase_resilience" in message:
        return (
            f"our migration was removed or is of another version ({message}). {_run_migration()} "
            "Then restart this worker."
        )
    return (
        f"the API has no such function of queues ({message}). {_EXPOSE} If it is there, the API "
        "has not seen it yet:\nnotify pgrst, 'reload schema';"
    )


def _no_pgmq(message: str, _: Mapping[str, Any]) -> str | None:
    if "pgmq" not in message:
        return None
    return (
        f"Supabase Queues are not installed here ({message}). Run this SQL:\n"
        "create extension if not exists pgmq;"
    )


def _not_allowed(message: str, arguments: Mapping[str, Any]) -> str:
    if "row-level security" in message:
        return (
            f"row level security refuses this ({message}). Use the project's secret key "
            "(role service_role), which it does not bind, or allow the role of your key what it "
            f"needs:\n{_policy(_names(message, arguments)[0])}"
        )
    return (
        f"this key may not use the queue ({message}). Use the project's secret key "
        "(role service_role). If that is the one in use, give its role what it lacks:\n"
        f"{_grant(message, arguments)}"
    )


def _policy(queue: str) -> str:
    return (
        f'create policy "producers may send" on pgmq."q_{queue.lower()}" '
        "for insert to authenticated with check (true);\n"
        f'create policy "producers see what they sent" on pgmq."q_{queue.lower()}" '
        "for select to authenticated using (true);"
    )


def _grant(message: str, arguments: Mapping[str, Any]) -> str:
    found = re.search(r"permission denied for (\w+) (.+)", message)
    kind, name = (found[1], found[2]) if found else ("", "")
    if kind == "schema":
        return f"grant usage on schema {name} to service_role;"
    if kind == "function":
        if name.startswith("supabase_resilience"):
            return f"grant execute on function public.{name} to service_role;"
        return "grant execute on all functions in schema pgmq_public, pgmq to service_role;"
    if kind == "sequence":
        return "grant usage on all sequences in schema pgmq to service_role;"
    queue = name.removeprefix("q_") if name.startswith("q_") else _names(message, arguments)[0]
    return f'grant all on table pgmq."q_{queue.lower()}" to service_role;'


def _no_nul(_: str, __: Mapping[str, Any]) -> str:
    return (
        "PostgreSQL stores no character U+0000 (\\u0000, a NUL) in JSON, and the data holds one. "
        'Take it out before it is enqueued: text.replace("\\0", "")'
    )


def _no_json(message: str, _: Mapping[str, Any]) -> str | None:
    if "json" not in message:
        return None
    return f"PostgreSQL refuses the data as JSON ({message}): it must be JSON of valid Unicode"


def _bad_name(message: str, _: Mapping[str, Any]) -> str | None:
    if not re.search("queue name|name of a queue", message):
        return None
    return (
        f"{message}. A queue's name may have up to 47 bytes, with the suffix of its lane or its "
        "dead letters, and no $, ;, -- or quotes: choose another one"
    )


_BY_CODE: Mapping[str, Callable[[str, Mapping[str, Any]], str | None]] = {
    "42P01": _no_table,
    "PGRST106": _not_exposed,
    "PGRST202": _no_function,
    "3F000": _no_pgmq,
    "42883": _no_pgmq,
    "42501": _not_allowed,
    "22P05": _no_nul,
    "22P02": _no_json,
    "22023": _bad_name,
    "P0001": _bad_name,
}
