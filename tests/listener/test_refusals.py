"""What Realtime and PostgREST say, and whether waiting, a token or a person heals it."""

import json

import httpx
import pytest
from postgrest import APIError

from supabase_resilience.listener._changes import Shape
from supabase_resilience.listener._refusals import of_api, of_handshake, of_realtime

SHAPE = Shape("public", "orders", ["id"])
SUBSCRIBE = "Unable to subscribe to changes with given parameters."

REALTIME = {
    "token": [
        "MalformedJWT: The token provided is not a valid JWT",
        "JwtSignatureError: Failed to validate JWT signature",
        "JwtSignerError: no signer",
        "InvalidJWTToken: Token has expired 5 seconds ago",
        "InvalidJWTToken: Fields `role` and `exp` are required in JWT",
        "InvalidJWTToken: Token expiration time is invalid",
        "Token has expired 0 seconds ago",
        "The token provided is not a valid JWT",
        ":signature_error",
        "Fields `role` and `exp` are required in JWT",
    ],
    "rate": [
        "ChannelRateLimitReached: Too many channels",
        "ConnectionRateLimitReached: Too many connected users",
        "ClientJoinRateLimitReached: Too many joins per second",
        "DatabaseConnectionRateLimitReached: Too many database connections attempts per second",
    ],
    "permanent": [
        f"{SUBSCRIBE} Please check Realtime is enabled for the given connect parameters: [x]",
        f"{SUBSCRIBE} An exception happened so please check your connect parameters: [x].",
        "Exception: ERROR P0001 (raise_exception) invalid column for filter nope",
        'ERROR 22P02 (invalid_text_representation) invalid input syntax for type integer: "abc"',
        "ERROR P0001 (raise_exception) invalid column for select zzz",
        'Error parsing `filter` params: ["foo", "1"]',
        "`in` filter value must be wrapped by parentheses",
        "No subscription params provided. Please provide at least a `schema`",
        "Column selection is not supported for wildcard subscriptions.",
        "Unauthorized: You do not have permissions to read from this Channel topic: x",
        "You do not have permissions to read from this Channel topic: x",
        "PrivateOnly: This project only allows private channels",
        "TenantNotFound: Tenant with id x not found",
        "RealtimeDisabledForTenant: Realtime disabled for this tenant",
    ],
    "passing": [
        "IncreaseConnectionPool: Please increase your connection pool size",
        "DatabaseLackOfConnections: Database can't accept more connections",
        "UnableToConnectToProject: Realtime was unable to connect to the project database",
        "Realtime was unable to connect to the project database",
        "InitializingProjectConnection: Realtime is initializing the project connection",
        "QueryCanceled: canceling statement due to statement timeout",
        "MissingPartition: partition not found",
        "TimeoutOnRpcCall: Node request timeout",
        "ErrorOnRpcCall: Error",
        "RealtimeRestarting: Realtime is restarting, please standby",
        "UnknownErrorOnChannel: Unknown Error on Channel",
        "Unknown Error on Channel",
        '{:error, "Too many database timeouts"}',
        "channel_crash",
        "Server requested disconnect",
        "",
    ],
}
TEXTS = [(text, kind) for kind, texts in REALTIME.items() for text in texts]


@pytest.mark.parametrize(("text", "kind"), TEXTS)
def test_words_of_realtime(text, kind):
    """Each text that it was seen or read to send is taken for what it is, and handed on."""
    refusal = of_realtime(text, SHAPE)
    assert (kind, text) == (refusal.kind, refusal.reason)
    assert (kind in {"token", "permanent"}) == bool(refusal.remedy), "a person is told what to do"


@pytest.mark.parametrize(("text", "kind"), TEXTS)
def test_words_inside_of_json(text, kind):
    """A system message or a refused join is the same as its words alone."""
    words = of_realtime(text, SHAPE)
    if text:
        assert words == of_realtime(json.dumps({"message": text, "status": "error"}), SHAPE)
        assert words == of_realtime(json.dumps({"reason": text}), SHAPE)


@pytest.mark.parametrize("text", ["{}", '{"status": "error"}', "[]", "7", "null", '"text"', "{"])
def test_json_without_words(text):
    """It is handed on as it is, and tried again."""
    assert ("passing", text, "") == of_realtime(text, SHAPE)


def test_a_table_that_is_not_published():
    """The remedy can be pasted into the SQL editor."""
    remedy = of_realtime(REALTIME["permanent"][0], SHAPE).remedy
    assert "alter publication supabase_realtime add table public.orders;" in remedy


def test_a_change_log_that_realtime_does_not_tell_of():
    """The remedy is the key and the migration."""
    text = f"{SUBSCRIBE} Please check: [event: INSERT, schema: supabase_resilience, table: changes]"
    refusal = of_realtime(text, SHAPE)
    assert "permanent" == refusal.kind
    assert "secret key" in refusal.remedy
    assert "sql listener --table public.orders --recovery change-log" in refusal.remedy


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (401, "token", "Realtime refused the key (401)"),
        (403, "permanent", "Realtime refused the connection (403)"),
        (404, "permanent", "Realtime refused the connection (404)"),
        (429, "rate", "Realtime has too many connections or joins (429)"),
        (500, "passing", "HTTP 500"),
        (503, "passing", "HTTP 503"),
        (414, "passing", "HTTP 414"),
        (None, "passing", "OSError"),
    ],
)
def test_handshake(status, kind, reason):
    """No socket: by its status, or by the name of the error, which may hold a key."""
    refusal = of_handshake(status, OSError("wss://x?apikey=secret"))
    assert (kind, reason) == (refusal.kind, refusal.reason)
    assert (kind in {"token", "permanent"}) == bool(refusal.remedy)


# --- catch-ups ------------------------------------------------------------------------------------

MIGRATION = "python -m supabase_resilience sql listener --table public.orders"
API: list[tuple[str, str, str, str, str]] = [
    ("PGRST301", "JWSError JWSInvalidSignature", "versioned", "token", "give a valid token"),
    ("PGRST302", "Anonymous access is disabled", "versioned", "token", "give a valid token"),
    ("PGRST303", "JWT expired", "versioned", "token", "give a valid token"),
    ("", "Invalid JWT", "versioned", "token", "give a valid token"),
    ("", "Invalid API key", "versioned", "token", "give a valid token"),
    ("PGRST202", "Could not find the function", "versioned", "permanent", MIGRATION),
    (
        "PGRST202",
        "Could not find the function",
        "change_log",
        "permanent",
        f"{MIGRATION} --recovery change-log",
    ),
    ("42703", "column orders.sync_xid does not exist", "versioned", "permanent", MIGRATION),
    ("42703", "column orders.changed does not exist", "by_column", "permanent", "check id_column"),
    (
        "42501",
        "permission denied for function supabase_resilience_tombstones",
        "versioned",
        "permanent",
        "use the secret key (role service_role), or Recovery.versioned(key_diff=True)",
    ),
    (
        "42501",
        "permission denied for function supabase_resilience_changes",
        "change_log",
        "permanent",
        "use the secret key (role service_role)",
    ),
    (
        "42501",
        "permission denied for table orders",
        "by_column",
        "permanent",
        "grant select on public.orders",
    ),
    (
        "42P01",
        "relation does not exist",
        "by_column",
        "permanent",
        "create the table public.orders",
    ),
    (
        "PGRST205",
        "Could not find the table",
        "by_column",
        "permanent",
        "create the table public.orders",
    ),
    ("PGRST106", "Invalid schema", "by_column", "permanent", "expose the schema of public.orders"),
    ("22P02", "invalid input syntax", "by_column", "permanent", "check filter="),
    ("PGRST100", "failed to parse filter", "by_column", "permanent", "check filter="),
    ("42883", "operator does not exist", "by_column", "permanent", "check filter="),
    ("57014", "canceling statement due to statement timeout", "versioned", "passing", ""),
    ("PGRST002", "Could not query the database for the schema cache", "versioned", "passing", ""),
    ("PGRST003", "Timed out acquiring connection from connection pool", "versioned", "passing", ""),
    ("503", "Service Unavailable", "versioned", "passing", ""),
    ("P0001", "raised by a policy", "versioned", "passing", ""),
]


# A message that might quote a value is not told.
INSTEAD = {
    "Invalid JWT": "the token was refused",
    "Invalid API key": "wrong key or URL",
    "invalid input syntax": "refused by the database (22P02)",
    "failed to parse filter": "the request was refused (PGRST100)",
    "Service Unavailable": "unavailable (503)",
    "raised by a policy": "refused by the database (P0001)",
}


@pytest.mark.parametrize(("code", "message", "level", "kind", "remedy"), API)
def test_catch_up(code, message, level, kind, remedy):
    """An answer of PostgREST: its words, or what its code means, and what a person can do."""
    error = APIError({"code": code, "message": message, "hint": None, "details": None})
    refusal = of_api(error, SHAPE, level)
    assert (kind, INSTEAD.get(message, message)) == (refusal.kind, refusal.reason)
    assert refusal.remedy.endswith(remedy) if MIGRATION in remedy else remedy in refusal.remedy
    assert bool(remedy) == bool(refusal.remedy)


def test_key_diff_is_no_remedy_for_a_log():
    """Only deletes can be found without the secret key."""
    error = APIError(
        {"code": "42501", "message": "permission denied for supabase_resilience_changes"}
    )
    assert "key_diff" not in of_api(error, SHAPE, "change_log").remedy


def test_a_catch_up_without_an_answer():
    """An error of the network passes; its text may hold anything."""
    error = httpx.ConnectError("https://x?apikey=secret")
    assert ("passing", "ConnectError", "") == of_api(error, SHAPE, "versioned")


def test_an_error_without_words():
    """What is known of its code is said instead."""
    refusal = of_api(APIError({"code": "57014"}), SHAPE, "versioned")
    assert "passing" == refusal.kind
    assert refusal.reason


def test_a_table_with_another_key():
    """The command makes the migration for that key."""
    shape = Shape("shop", "lines", ["order", "line"])
    remedy = of_api(APIError({"code": "PGRST202", "message": "x"}), shape, "versioned").remedy
    assert remedy.endswith("sql listener --table shop.lines --key order,line")
