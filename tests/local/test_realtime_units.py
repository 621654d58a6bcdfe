"""The pure parts of the local Realtime: WAL decoder, values, filters, bindings, tokens, frames."""

import json
import struct
import time
from dataclasses import fields
from decimal import Decimal
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors

from supabase_resilience.local.realtime._bindings import (
    Binding,
    BindingError,
    binding_id,
    parse_binding,
)
from supabase_resilience.local.realtime._broadcasts import parse_binary
from supabase_resilience.local.realtime._compiler import describe_error
from supabase_resilience.local.realtime._elixir import inspect
from supabase_resilience.local.realtime._fanout import Commit
from supabase_resilience.local.realtime._filters import (
    Filter,
    FilterError,
    FilterSpec,
    parse_filters,
)
from supabase_resilience.local.realtime._joins import JoinConfig, JoinError
from supabase_resilience.local.realtime._pgoutput import (
    ABSENT,
    Begin,
    Change,
    Decoder,
    Marker,
    Relation,
)
from supabase_resilience.local.realtime._phoenix import Frame, Message
from supabase_resilience.local.realtime._rates import Rate
from supabase_resilience.local.realtime._settings import SettingChanges, Settings
from supabase_resilience.local.realtime._settling import is_settled
from supabase_resilience.local.realtime._subscriptions import Subscription
from supabase_resilience.local.realtime._tokens import Keyring, TokenError
from supabase_resilience.local.realtime._values import encoder_of
from supabase_resilience.local.realtime._wal import StartError, WalReader

INT4, INT8, TEXT, BOOL, NUMERIC = 23, 20, 25, 16, 1700
SECRET = "a secret that is long enough for HS256"


# --- WAL decoder: bytes in, records out ---


def relation_message(*columns: tuple[str, int, int], identity: bytes = b"d") -> bytes:
    """Columns are (name, type oid, flags); flag 1 marks the replica identity."""
    head = b"R" + struct.pack(">I", 7) + b"public\0orders\0" + identity
    body = b"".join(
        struct.pack(">B", flags) + name.encode() + b"\0" + struct.pack(">Ii", oid, -1)
        for name, oid, flags in columns
    )
    return head + struct.pack(">H", len(columns)) + body


def tuple_bytes(kind: bytes, *values: str | None) -> bytes:
    """`None` is NULL, `"~"` an unchanged TOAST value."""
    marks = {None: b"n", "~": b"u"}
    fields = (
        marks.get(value)
        or b"t" + struct.pack(">I", len((value or "").encode())) + (value or "").encode()
        for value in values
    )
    return kind + struct.pack(">H", len(values)) + b"".join(fields)


def change_message(tag: bytes, *tuples: bytes) -> bytes:
    return tag + struct.pack(">I", 7) + b"".join(tuples)


def decode_change(*messages: bytes) -> Change:
    decoder = Decoder()
    records = [decoder.decode(message) for message in messages]
    assert isinstance(records[-1], Change)
    return records[-1]


KEYED = relation_message(("id", INT4, 1), ("note", TEXT, 0))
FULL = relation_message(("id", INT4, 1), ("note", TEXT, 1), identity=b"f")


def test_insert_carries_text_and_null() -> None:
    """An INSERT has its values as PostgreSQL's text, NULL as None, and no old row."""
    change = decode_change(KEYED, change_message(b"I", tuple_bytes(b"N", "1", None)))
    assert change.kind == "INSERT"
    assert (change.relation.schema, change.relation.table) == ("public", "orders")
    assert change.new == ("1", None)
    assert change.old is None


def test_text_is_utf8() -> None:
    """Values beyond ASCII arrive as they were written."""
    change = decode_change(KEYED, change_message(b"I", tuple_bytes(b"N", "1", "grün 🌱")))
    assert change.new == ("1", "grün 🌱")


def test_update_marks_unchanged_toast() -> None:
    """A TOAST value that an UPDATE left alone is absent, not NULL."""
    change = decode_change(KEYED, change_message(b"U", tuple_bytes(b"N", "1", "~")))
    assert change.new == ("1", ABSENT)


def test_update_without_old_tuple_has_its_key() -> None:
    """PostgreSQL omits an unchanged key; the old row is then the key of the new one."""
    change = decode_change(KEYED, change_message(b"U", tuple_bytes(b"N", "1", "new")))
    assert change.old == ("1", ABSENT)


def test_update_of_the_key_has_the_old_key() -> None:
    """An UPDATE that changes the key carries the old key, and nothing else of the old row."""
    message = change_message(b"U", tuple_bytes(b"K", "1", None), tuple_bytes(b"N", "2", "x"))
    change = decode_change(KEYED, message)
    assert change.old == ("1", ABSENT)
    assert change.new == ("2", "x")


def test_delete_has_the_key_only() -> None:
    """A DELETE under the default replica identity knows the key; the rest is absent, not NULL."""
    change = decode_change(KEYED, change_message(b"D", tuple_bytes(b"K", "1", None)))
    assert change.new is None
    assert change.old == ("1", ABSENT)


def test_full_identity_has_the_whole_old_row() -> None:
    """REPLICA IDENTITY FULL brings the old row, NULLs included."""
    change = decode_change(FULL, change_message(b"D", tuple_bytes(b"O", "1", None)))
    assert change.old == ("1", None)


def test_a_new_description_replaces_the_old_one() -> None:
    """After DDL the relation comes again, and later changes are read by it."""
    widened = relation_message(("id", INT4, 1), ("note", TEXT, 0), ("extra", TEXT, 0))
    message = change_message(b"I", tuple_bytes(b"N", "1", "a", "b"))
    change = decode_change(KEYED, widened, message)
    assert [column.name for column in change.relation.columns] == ["id", "note", "extra"]


def test_begin_tells_where_and_when_the_transaction_committed() -> None:
    """The first message of a transaction has its commit's position and time."""
    message = b"B" + struct.pack(">QqI", 4711, 1_500_000, 99)
    assert Decoder().decode(message) == Begin(4711, 1_500_000, 99)


def test_relations_are_told() -> None:
    """The description of a table is a record of its own: caches must hear of it."""
    record = Decoder().decode(KEYED)
    assert isinstance(record, Relation)
    assert record.oid == 7


@pytest.mark.parametrize("tag", [b"C", b"T", b"O", b"Y"])
def test_other_messages_are_nothing(tag: bytes) -> None:
    """Commit, truncate, origin and type messages make no record."""
    assert Decoder().decode(tag + bytes(40)) is None


def test_a_logical_message_is_a_marker() -> None:
    """What somebody emitted into the WAL comes back, in its place among the changes."""
    message = b"M" + struct.pack(">BQ", 1, 4711) + b"prefix\0" + struct.pack(">I", 3) + b"abc"
    assert Decoder().decode(message) == Marker(b"abc")


def test_commit_time_is_milliseconds_in_utc() -> None:
    """Clients see the commit's time cut to milliseconds, with a Z."""
    commit = Commit.of(Begin(1, 1_999_999, 5))
    assert commit.timestamp == "2000-01-01T00:00:01.999Z"


@pytest.mark.parametrize(
    ("snapshot", "xid", "expected"),
    [
        ("10:20:12,15", 11, True),
        ("10:20:12,15", 15, False),
        ("10:20:", 20, False),
        ("10:20:", 25, False),
        (f"{2**32 + 1}:{2**32 + 9}:{2**32 + 3}", 3, False),
        (f"{2**32 + 1}:{2**32 + 9}:", 5, True),
        (f"{2**32 + 1}:{2**32 + 9}:", 2**32 - 1, True),
        (f"{2**32 - 9}:{2**32 - 1}:", 2, False),
    ],
)
def test_a_commit_settles_when_snapshots_see_it(
    snapshot: str,
    xid: int,
    expected: bool,  # noqa: FBT001
) -> None:
    """The WAL's 32-bit xid is judged by its distance to the snapshot's 64-bit ones."""
    assert expected is is_settled(snapshot, xid)


# --- values ---


@pytest.mark.parametrize(
    ("oid", "text", "expected"),
    [
        (INT8, "9007199254740993", "9007199254740993"),
        (INT4, "-5", "-5"),
        (NUMERIC, "12345678901234567890.1200", "12345678901234567890.1200"),
        (NUMERIC, "NaN", '"NaN"'),
        (701, "1.5", "1.5"),
        (701, "1e+20", "100000000000000000000"),
        (701, "1e-07", "0.0000001"),
        (701, "-Infinity", '"-Infinity"'),
        (BOOL, "t", "true"),
        (BOOL, "f", "false"),
        (TEXT, 'say "hi"\n', '"say \\"hi\\"\\n"'),
        (TEXT, "", '""'),
        (1114, "2026-01-02 03:04:05.678", '"2026-01-02T03:04:05.678"'),
        (1184, "2026-01-02 03:04:05+00", '"2026-01-02T03:04:05+00:00"'),
        (1184, "infinity", '"infinity"'),
        (1082, "2026-01-02", '"2026-01-02"'),
        (17, "\\xdeadbeef", '"deadbeef"'),
        (3802, '{"k": [1, null]}', '{"k": [1, null]}'),
        (26, "16384", '"16384"'),
        (2950, "6f3f5a1e-0d5c-4a7e-8a43-0f2b6a0f5d01", '"6f3f5a1e-0d5c-4a7e-8a43-0f2b6a0f5d01"'),
        (1186, "1 day 02:03:04", '"1 day 02:03:04"'),
    ],
)
def test_values_read_as_to_jsonb_writes_them(oid: int, text: str, expected: str) -> None:
    """Each built-in type has the JSON that PostgreSQL's to_jsonb gives it, digit by digit."""
    encode = encoder_of(oid, "b", is_array=False)
    assert encode is not None
    assert expected == encode(text)


@given(st.text())
def test_any_text_survives(text: str) -> None:
    """Whatever the characters, the JSON of a text is that text."""
    encode = encoder_of(TEXT, "b", is_array=False)
    assert encode is not None
    assert text == json.loads(encode(text))


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_any_numeric_survives(number: Decimal) -> None:
    """A numeric keeps every digit and its scale."""
    encode = encoder_of(NUMERIC, "b", is_array=False)
    assert encode is not None
    text = format(number, "f")
    assert text == str(json.loads(encode(text), parse_float=str, parse_int=str))


@pytest.mark.parametrize(
    ("oid", "kind", "is_array"),
    [(1007, "b", True), (50_000, "d", False), (50_000, "c", False), (50_000, "b", False)],
)
def test_only_postgresql_knows_the_rest(oid: int, kind: str, is_array: bool) -> None:  # noqa: FBT001
    """Arrays, domains, composites and extension types have no encoder here."""
    assert encoder_of(oid, kind, is_array=is_array) is None


def test_an_enum_is_a_string() -> None:
    """A user's enum reads as its label."""
    encode = encoder_of(50_000, "e", is_array=False)
    assert encode is not None
    assert encode("open") == '"open"'


# --- filters ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        ("id=eq.5", [("id", "eq", "5", False)]),
        ("id=not.eq.5", [("id", "eq", "5", True)]),
        ("t=eq.a.b=c", [("t", "eq", "a.b=c", False)]),
        ("id=gt.0,id=lt.9", [("id", "gt", "0", False), ("id", "lt", "9", False)]),
        ("s=in.(a,b),n=is.null", [("s", "in", "{a,b}", False), ("n", "is", "null", False)]),
        ('t=eq."a,b"', [("t", "eq", "a,b", False)]),
        ('t=eq."say \\"hi\\""', [("t", "eq", 'say "hi"', False)]),
        ('t=in.("a,b",c)', [("t", "in", '{"a,b",c}', False)]),
        ("t=eq.f(x,y),n=eq.1", [("t", "eq", "f(x,y)", False), ("n", "eq", "1", False)]),
    ],
)
def test_filters_parse(text: str, expected: list[tuple[str, str, str, bool]]) -> None:
    """A comma outside of parentheses and quotes means AND; `not.` negates."""
    assert expected == [spec.as_term() for spec in parse_filters(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user_id=foo.1", '["foo", "1"]'),
        ("undefined", '["undefined"]'),
        ("user_id=eq", '["eq"]'),
        ("user_id=in.1,2", "`in` filter value must be wrapped by parentheses"),
        ("a=eq.1,", "filter must not contain empty segments (check for extra commas)"),
    ],
)
def test_bad_filters_are_named(text: str, expected: str) -> None:
    """A filter that cannot be read is refused with Realtime's words."""
    with pytest.raises(FilterError) as refused:
        parse_filters(text)
    assert expected == str(refused.value)


def passes(type_oid: int, filter_text: str, value: str | None, *operands: str | None) -> bool:
    """Test one value; the operands are what PostgreSQL makes of the filter's value."""
    (spec,) = parse_filters(filter_text)
    return Filter(spec, type_oid, operands or (spec.value,)).matches(value)


@pytest.mark.parametrize(
    ("type_oid", "filter_text", "value", "expected"),
    [
        (INT4, "c=eq.10", "10", True),
        (INT4, "c=lt.10", "9", True),
        (INT4, "c=gt.9", "10", True),
        (INT4, "c=gte.10", "10", True),
        (INT4, "c=lte.9", "10", False),
        (INT4, "c=neq.10", "10", False),
        (INT4, "c=not.eq.10", "11", True),
        (INT4, "c=eq.10", None, False),
        (INT4, "c=not.eq.10", None, False),
        (INT8, "c=gt.9007199254740992", "9007199254740993", True),
        (NUMERIC, "c=eq.1.5", "1.50", True),
        (NUMERIC, "c=gt.1", "NaN", True),
        (NUMERIC, "c=eq.NaN", "NaN", True),
        (TEXT, "c=lt.10", "9", False),
        (1042, "c=eq.ab", "ab   ", True),
        (1184, "c=gt.2026-01-02 03:04:05+00", "2026-01-02 03:04:05.5+00", True),
        (BOOL, "c=is.true", "t", True),
        (BOOL, "c=is.false", "t", False),
        (BOOL, "c=is.unknown", None, True),
        (TEXT, "c=is.null", None, True),
        (TEXT, "c=not.is.null", None, False),
        (TEXT, "c=not.is.null", "x", True),
        (TEXT, "c=like.a%c_", "abbbcd", True),
        (TEXT, "c=like.a%c_", "abbbc", False),
        (TEXT, "c=like.A%", "abc", False),
        (TEXT, "c=ilike.A%", "abc", True),
        (TEXT, "c=like.50\\%", "50%", True),
        (TEXT, "c=like.50\\%", "500", False),
        (TEXT, "c=like.%b", "a\nb", True),
        (TEXT, "c=not.like.a%", "b", True),
        (TEXT, "c=not.like.a%", None, False),
        (TEXT, "c=match.^a.+d$", "abcd", True),
        (TEXT, "c=match.^A", "abcd", False),
        (TEXT, "c=imatch.^A", "abcd", True),
        (INT4, "c=isdistinct.1", None, True),
        (INT4, "c=isdistinct.1", "1", False),
        (INT4, "c=not.isdistinct.1", "1", True),
    ],
)
def test_operators(
    type_oid: int,
    filter_text: str,
    value: str | None,
    expected: bool,  # noqa: FBT001
) -> None:
    """Operators compare by the column's type; NULL passes only where SQL says true."""
    assert expected == passes(type_oid, filter_text, value)


@pytest.mark.parametrize(
    ("filter_text", "operands", "value", "expected"),
    [
        ("c=in.(1,2)", ("1", "2"), "2", True),
        ("c=in.(1,2)", ("1", "2"), "3", False),
        ("c=not.in.(1,2)", ("1", "2"), "3", True),
        ("c=not.in.(1,2)", ("1", "2"), None, False),
        ("c=in.(1,NULL)", ("1", None), "1", True),
        ("c=not.in.(1,NULL)", ("1", None), "3", False),
    ],
)
def test_in_follows_three_valued_logic(
    filter_text: str,
    operands: tuple[str | None, ...],
    value: str | None,
    expected: bool,  # noqa: FBT001
) -> None:
    """`in` is unknown, and so passes nobody, when the value is NULL or might equal a NULL."""
    assert expected == passes(INT4, filter_text, value, *operands)


def test_an_absent_value_never_passes() -> None:
    """What the WAL does not carry fails every filter, a negated one, too."""
    spec = FilterSpec("c", "eq", "1", negated=True)
    assert Filter(spec, INT4, ("1",)).matches(ABSENT) is False


@given(st.text(), st.text())
def test_like_with_every_character_escaped_is_equality(pattern: str, value: str) -> None:
    """LIKE has no special characters but its wildcards and the backslash."""
    escaped = "".join(f"\\{character}" for character in pattern)
    spec = FilterSpec("c", "like", escaped, negated=False)
    like = Filter(spec, TEXT, (escaped,))
    assert like.matches(pattern)
    assert (pattern == value) == like.matches(value)


# --- bindings ---


def test_a_binding_has_defaults() -> None:
    """Without a table every table is meant, without a schema `public`, without an event all."""
    assert Binding("*", "s", "*") == parse_binding({"schema": "s"})
    assert Binding("*", "public", "t") == parse_binding({"table": "t"})
    assert Binding("INSERT", "public", "t") == parse_binding({"event": "insert", "table": "t"})
    assert Binding("*", "public", "t") == parse_binding({"event": "TRUNCATE", "table": "t"})


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (
            {"event": "*"},
            (
                "No subscription params provided. Please provide at least a `schema` or `table` to "
                'subscribe to: %{"event" => "*"}'
            ),
        ),
        (
            {"event": "*", "schema": "public", "table": "todos", "filter": None},
            (
                "No subscription params provided. Please provide at least a `schema` or `table` to "
                'subscribe to: %{"event" => "*", "filter" => nil, "schema" => "public", '
                '"table" => "todos"}'
            ),
        ),
        (
            {"schema": "public", "table": "todos", "filter": "user_id=foo.1"},
            'Error parsing `filter` params: ["foo", "1"]',
        ),
        (
            {"schema": "*", "select": ["id"]},
            (
                "Column selection is not supported for wildcard subscriptions. "
                "Provide an explicit schema and table name."
            ),
        ),
        (
            {"schema": "public", "table": "todos", "select": "id"},
            (
                "Error parsing `select` params: expected a list of column name strings, "
                'e.g. select: ["col1", "col2"]'
            ),
        ),
    ],
)
def test_bad_bindings_are_explained(params: dict[str, Any], expected: str) -> None:
    """A binding that cannot be read is refused with Realtime's words."""
    with pytest.raises(BindingError) as refused:
        parse_binding(params)
    assert expected == str(refused.value)


def test_a_binding_describes_itself_as_elixir_would() -> None:
    """Error messages show the parameters the way the real server prints them."""
    params = {"schema": "public", "table": "todos", "filter": "user_id=eq.abc", "select": ["id"]}
    expected = (
        "[event: *, schema: public, table: todos, "
        'filters: [{"user_id", "eq", "abc", false}], select: ["id"]]'
    )
    assert expected == parse_binding(params).describe()


def test_equal_bindings_share_an_id() -> None:
    """The id depends on what the binding says, not on the order in which it says it."""
    first = binding_id({"event": "*", "schema": "public"})
    assert first == binding_id({"schema": "public", "event": "*"})
    assert first != binding_id({"event": "*", "schema": "other"})


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (None, "nil"),
        (True, "true"),
        (1, "1"),
        ("a", '"a"'),
        ([("a", False)], '[{"a", false}]'),
        ({"b": 1, "a": []}, '%{"a" => [], "b" => 1}'),
    ],
)
def test_inspect_prints_as_elixir(term: Any, expected: str) -> None:
    """Terms in messages look as the real server prints them."""
    assert expected == inspect(term)


def test_a_database_error_is_shown_with_code_and_name() -> None:
    """Clients see the SQLSTATE and its name, as the real server shows them."""
    error = errors.InvalidTextRepresentation("invalid input")
    assert describe_error(error) == "ERROR 22P02 (invalid_text_representation) invalid input"


@pytest.mark.parametrize(
    ("event", "commit_lsn", "expected"),
    [("*", 100, True), ("INSERT", 101, True), ("*", 99, False), ("UPDATE", 101, False)],
)
def test_a_subscription_wants_its_events_from_its_start_on(
    event: str,
    commit_lsn: int,
    expected: bool,  # noqa: FBT001
) -> None:
    """What was committed before "Subscribed" is not delivered, even if it is read later."""
    change = decode_change(KEYED, change_message(b"I", tuple_bytes(b"N", "1", None)))
    subscription = Subscription(1, event, None, 100, {7: ()})
    assert expected is subscription.wants(change, commit_lsn)


# --- joins ---


def test_wrong_shapes_in_a_join_are_defaults() -> None:
    """A join is generous: what cannot be read counts as not given."""
    payload = {"config": {"postgres_changes": "x", "broadcast": 1, "presence": {"key": 5}}}
    expected = JoinConfig(
        private=False,
        broadcast_self=False,
        broadcast_ack=False,
        presence_enabled=False,
        presence_key="",
        replication_ready=False,
        bindings=(),
    )
    assert expected == JoinConfig.parse("realtime:x", payload)


def test_a_join_without_config_is_the_old_protocol() -> None:
    """Then the topic itself is the binding: schema, table, filter."""
    config = JoinConfig.parse("realtime:public:todos:id=eq.1", {})
    assert config.bindings == ({"schema": "public", "table": "todos", "filter": "id=eq.1"},)


def test_a_config_that_is_no_object_is_refused() -> None:
    """The one wrong shape that the real server cannot read either."""
    with pytest.raises(JoinError, match="no function clause matching"):
        JoinConfig.parse("realtime:x", {"config": "x"})


# --- tokens ---


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(jwt_secret=SECRET, publishable_key="sb_publishable_p", secret_key="sb_secret_s")


def token(secret: str = SECRET, **claims: Any) -> str:
    return jwt.encode(claims, secret, "HS256")


def test_api_keys_are_roles(keyring: Keyring) -> None:
    """The publishable key is anon, the secret key service_role; neither expires."""
    assert keyring.claims("sb_publishable_p") == {"role": "anon"}
    assert keyring.claims("sb_secret_s") == {"role": "service_role"}


def test_a_valid_token_gives_its_claims(keyring: Keyring) -> None:
    """The audience, the issuer and a clock that runs behind are no reason to refuse."""
    claims: dict[str, Any] = {
        "role": "authenticated",
        "exp": time.time() + 60,
        "aud": "x",
        "iat": 2**40,
    }
    assert claims == keyring.claims(token(**claims))


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("abc", "MalformedJWT: The token provided is not a valid JWT"),
        (
            token("another secret, also long enough", role="anon", exp=2**40),
            "JwtSignatureError: Failed to validate JWT signature",
        ),
        (token(exp=2**40), "InvalidJWTToken: Fields `role` and `exp` are required in JWT"),
        (token(role="anon"), "InvalidJWTToken: Fields `role` and `exp` are required in JWT"),
        (token(role="anon", exp="x"), "InvalidJWTToken: Token expiration time is invalid"),
    ],
)
def test_bad_tokens_are_refused_in_realtimes_words(
    keyring: Keyring, bad: str, expected: str
) -> None:
    """Each fault has the code and the sentence of the real server."""
    with pytest.raises(TokenError) as refused:
        keyring.claims(bad)
    assert expected == refused.value.join_reason


def test_an_expired_token_tells_its_age(keyring: Keyring) -> None:
    """The refusal says how many seconds ago the token expired."""
    expired = token(role="anon", exp=time.time() - 3600.5)
    with pytest.raises(TokenError, match=r"^Token has expired 36\d\d seconds ago$"):
        keyring.claims(expired)


def test_a_forged_token_reads_differently_when_pushed(keyring: Keyring) -> None:
    """In answer to an access_token push the signature's fault is an Elixir atom."""
    forged = token("another secret, also long enough", role="anon", exp=2**40)
    with pytest.raises(TokenError) as refused:
        keyring.claims(forged)
    assert refused.value.pushed == ":signature_error"


# --- frames ---


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '"x"', '{"topic":"t","event":"e","payload":{}}', '{"event":"e","ref":"1"}', "{}"],
)
def test_malformed_frames_are_dropped(text: str) -> None:
    """Bad JSON and missing fields make no message."""
    assert Message.parse(text) is None


def test_a_frame_is_an_object_with_four_keys() -> None:
    """The keys come in the order of the real server."""
    expected = '{"event":"e","payload":{"a":1},"ref":null,"topic":"realtime:\\"x\\""}'
    assert expected == Frame('realtime:"x"', "e", '{"a":1}').encode("1.0.0")


# --- start ---


@pytest.mark.anyio
async def test_an_unreachable_database_is_one_clear_error() -> None:
    """When PostgreSQL does not answer in time, the error says so and what to check."""

    async def consume(_message: bytes) -> None:
        raise AssertionError

    reader = WalReader("host=127.0.0.1 port=1 user=x dbname=x", "p", consume, Settings())
    with pytest.raises(StartError, match="check that it runs and that the DSN is right"):
        await reader.open(patience=0.2)
    assert not reader.is_open


# --- rates and settings ---


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_an_average_over_whole_ticks() -> None:
    """The tick that runs does not count; a window later, what happened in it counts no more."""
    clock = Clock()
    rate = Rate(Settings(rate_window=60.0), clock=clock)
    rate.add(10_000)
    assert not rate.is_above(100)
    clock.now += 5.0
    assert rate.is_above(100)  # 2,000 a second over the only tick so far
    clock.now += 54.9
    assert rate.is_above(100)  # 10,000 over 55 s
    clock.now += 0.1
    assert rate.is_above(100)
    assert not rate.is_above(10_000 / 60)
    clock.now += 5.0
    assert not rate.is_above(0.001)


def test_a_rate_without_limit_is_never_above_it() -> None:
    """None is no limit."""
    clock = Clock()
    rate = Rate(Settings(), clock=clock)
    rate.add(10**9)
    clock.now += 5.0
    assert not rate.is_above(None)


def test_a_pause_of_many_windows_is_taken_at_once() -> None:
    """After any time without a look the average is that of the last window."""
    clock = Clock()
    rate = Rate(Settings(rate_window=12.0), clock=clock)
    rate.add(100)
    clock.now += 1e9
    assert not rate.is_above(0.001)
    rate.add(24)
    clock.now += 1.0
    assert rate.is_above(1.9)
    assert not rate.is_above(2)


def test_another_window_starts_the_average_anew() -> None:
    """What was counted for the window of before is forgotten."""
    clock, settings = Clock(), Settings()
    rate = Rate(settings, clock=clock)
    rate.add(1000)
    clock.now += 5.0
    settings.change({"rate_window": 12.0})
    assert not rate.is_above(1)
    rate.add(2)
    clock.now += 1.0
    assert rate.is_above(1)


def test_every_setting_can_be_changed() -> None:
    """The typed dictionary of changes has the names of the settings."""
    assert [field.name for field in fields(Settings)] == list(SettingChanges.__annotations__)


def test_a_refused_change_changes_nothing() -> None:
    """Either all of the changes hold, or none."""
    settings = Settings()
    with pytest.raises(ValueError, match="idle_timeout"):
        settings.change({"max_channels": 1, "idle_timeout": 0})
    assert Settings() == settings


# --- binary broadcasts ---


PUSH = b"\x03\x01\x01\x0c\x06\x00\x0119realtime:bincursor" + b'{"x":1}'


@pytest.mark.parametrize(
    "data", [b"", PUSH[:6], b"\x04" + PUSH[1:], PUSH.replace(b"cur", b"\xff\xff\xff")]
)
def test_malformed_binary_frames_are_dropped(data: bytes) -> None:
    """Too short, of another kind, or no text where text must be."""
    assert parse_binary(data) is None


def test_a_binary_broadcast_is_json_for_the_first_version() -> None:
    """Clients of version 1.0.0 are sent the JSON of it, the others what was sent."""
    message = parse_binary(PUSH)
    assert message is not None
    assert message.broadcast is not None
    assert ("1", "9", "realtime:bin") == (message.join_ref, message.ref, message.topic)
    assert b"\x04\x0c\x06\x00\x01realtime:bincursor" + b'{"x":1}' == message.broadcast.encode(
        "2.0.0"
    )
    expected = {
        "event": "broadcast",
        "payload": {"event": "cursor", "payload": {"x": 1}, "type": "broadcast"},
        "ref": None,
        "topic": "realtime:bin",
    }
    assert expected == json.loads(message.broadcast.encode("1.0.0") or "")


def test_frames_of_the_second_version_are_arrays() -> None:
    """They start with the join's ref and their own."""
    expected = '["1","2","realtime:t","e",{"a":1}]'
    assert expected == Frame("realtime:t", "e", '{"a":1}', "2", "1").encode("2.0.0")
    assert Message("realtime:t", "e", {"a": 1}, "2", "1") == Message.parse(expected)
    assert Message.parse("[1,2,3]") is None
