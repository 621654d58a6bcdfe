"""Which words of Realtime and PostgREST no waiting can heal, and what a person does about them.

Whatever is not named here is taken for passing, and tried again. The texts are those of Realtime
2.129; a text that changes costs a remedy, never a retry.
"""

import json
import re
from typing import Literal, NamedTuple

from postgrest.exceptions import APIError

from supabase_resilience.failures import classify, words_of
from supabase_resilience.listener._changes import Shape
from supabase_resilience.listener._passes import migration_command

__all__ = ["Refusal", "of_api", "of_handshake", "of_realtime"]

Kind = Literal["passing", "token", "rate", "permanent"]


class Refusal(NamedTuple):
    """What a refusal means: `passing`, or a `token` to renew, a `rate` to respect, `permanent`."""

    kind: Kind
    reason: str
    remedy: str = ""


_PUBLICATION = (
    "check that the table exists and that Realtime is on for it: "
    "alter publication supabase_realtime add table {table};"
)
_FRESH = "give a valid token: a token= that returns a fresh one, or the project's current key"
_RULES: tuple[tuple[str, Kind, str], ...] = (
    (r"Token has expired|InvalidJWTToken|Token expiration", "token", _FRESH),
    (r"MalformedJWT|JwtSignature|JwtSigner|signature_error", "token", _FRESH),
    (r"not a valid JWT|Fields `role` and `exp`", "token", _FRESH),
    (r"RateLimitReached|Too many (joins|channels|connected)", "rate", ""),
    (
        (
            r"invalid column for filter|Error parsing `filter`|`in` filter value"
            r"|invalid input syntax|invalid column for select|An exception happened"
        ),
        "permanent",
        "check filter= against the table's columns and their types",
    ),
    (r"Please check Realtime is enabled", "permanent", _PUBLICATION),
    (r"No subscription params|Column selection is not", "permanent", "check table= and filter="),
    (
        r"Unauthorized|do not have permissions",
        "permanent",
        "give the role of this key rights on the channel, or use another key",
    ),
    (
        r"PrivateOnly",
        "permanent",
        "allow public channels in the project's Realtime settings: postgres_changes needs one",
    ),
    (
        r"TenantNotFound|RealtimeDisabled|Realtime was disabled",
        "permanent",
        "switch on Realtime for the project, and check its URL",
    ),
)


def of_realtime(answer: str, shape: Shape) -> Refusal:
    """What an error of a join, a channel or a subscription means."""
    text = _words(answer)
    if "schema: supabase_resilience, table: changes" in text:
        command = migration_command(shape, "change_log")
        remedy = (
            f"use the secret key (role service_role), and run the SQL that this prints: {command}"
        )
        return Refusal("permanent", "Realtime does not tell of the change log", remedy)
    for pattern, kind, remedy in _RULES:
        if re.search(pattern, text):
            return Refusal(kind, text, remedy.format(table=f"{shape.schema}.{shape.table}"))
    return Refusal("passing", text)


def _words(answer: str) -> str:
    """The part for people; the rest is another one with each connection."""
    try:
        payload = json.loads(answer)
        return str(payload.get("message") or payload.get("reason") or answer)
    except (ValueError, AttributeError):
        return answer


def of_handshake(status: int | None, error: Exception) -> Refusal:
    """What it means that no socket could be opened."""
    if status == 401:
        return Refusal("token", "Realtime refused the key (401)", _FRESH)
    if status in {403, 404}:
        reason = f"Realtime refused the connection ({status})"
        return Refusal("permanent", reason, "switch on Realtime for the project, check its URL")
    if status == 429:
        return Refusal("rate", "Realtime has too many connections or joins (429)")
    return Refusal("passing", type(error).__name__ if status is None else f"HTTP {status}")


def of_api(error: Exception, shape: Shape, level: str) -> Refusal:
    """What an error of a catch-up means."""
    if not isinstance(error, APIError):
        return Refusal("passing", type(error).__name__)
    meaning, code, text = classify(error), error.code or "", error.message or ""
    told = words_of(error)  # its message decides, but is not told where it may quote a row
    if meaning.verdict == "blocked" or code in _TOKEN_CODES:
        return Refusal("token", told, _FRESH)
    if "JWT" in text:
        return Refusal("token", "the token was refused", _FRESH)
    remedy = None if meaning.is_outage else _remedy(code, text, shape, level)
    if remedy is None:
        return Refusal("passing", told)
    return Refusal("permanent", told, remedy)


def _remedy(code: str, text: str, shape: Shape, level: str) -> str | None:
    if code == "PGRST202" or (code == "42703" and "sync_" in text):
        return f"run the SQL that this prints: {migration_command(shape, level)}"
    if code == "42501" and "supabase_resilience" in text:
        instead = ", or Recovery.versioned(key_diff=True)" if level == "versioned" else ""
        return f"use the secret key (role service_role){instead}"
    remedy = _API_REMEDIES.get(code)
    return None if remedy is None else remedy.format(table=f"{shape.schema}.{shape.table}")


_TOKEN_CODES = {"PGRST301", "PGRST302", "PGRST303"}
_API_REMEDIES = {
    "42P01": "create the table {table}, or correct table= and schema=",
    "PGRST205": "create the table {table}, or correct table= and schema=",
    "PGRST106": "expose the schema of {table} in the API's settings",
    "42703": "check id_column, the recovery's column and filter= against the columns of {table}",
    "42501": "grant select on {table} to the role of this key",
    "22P02": "check filter= against the types of the columns of {table}",
    "PGRST100": "check filter= against the columns of {table}",
    "42883": "check filter= against the types of the columns of {table}",
}
