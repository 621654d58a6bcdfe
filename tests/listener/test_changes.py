"""Frames and rows become the same changes, whatever the two printers of them make different."""

from typing import Any

import pytest
from realtime import RealtimePostgresChangesListenEvent as ListenEvent

from supabase_resilience.listener._changes import Seen, Shape, key_list
from supabase_resilience.listener._log import LogShape

AT = "2026-01-01T00:00:00.000Z"
ONE = Shape("public", "orders", ["id"], version="sync_ver", xid="sync_xid")
PLAIN = Shape("public", "orders", ["id"])
TWO = Shape("public", "lines", ["order", "line"])


def frame(kind: Any = "UPDATE", **data: Any) -> dict[str, Any]:
    record = data.get("record", {})
    columns = data.pop("columns", [{"name": name, "type": "int8"} for name in record or ()])
    return {
        "data": {
            "type": kind,
            "columns": columns,
            "record": record,
            "old_record": {},
            "commit_timestamp": AT,
            "errors": None,
            **data,
        }
    }


def columns(**types: str) -> list[dict[str, str]]:
    return [{"name": name, "type": kind} for name, kind in types.items()]


# --- keys -----------------------------------------------------------------------------------------

KEYS: list[tuple[Shape, dict[str, Any], Any]] = [
    (ONE, {"id": 7}, 7),
    (ONE, {"id": 2**63 - 1}, 2**63 - 1),
    (ONE, {"id": 'a,b.(c):d "e"'}, 'a,b.(c):d "e"'),
    (ONE, {"id": "0b3c1f0e-3c5a-4d0b-8f2e-0d8a4f0a1b2c"}, "0b3c1f0e-3c5a-4d0b-8f2e-0d8a4f0a1b2c"),
    (ONE, {"id": ["a", ["b"]]}, ("a", ("b",))),
    (ONE, {"id": {"a": 1}}, "{'a': 1}"),
    (TWO, {"line": 2, "order": "x"}, ("x", 2)),
    (TWO, {"line": [2], "order": None}, (None, (2,))),
]


@pytest.mark.parametrize(("shape", "row", "key"), KEYS)
def test_key(shape, row, key):
    """A key is the value of its column, or a tuple in the order of its columns, and hashable."""
    assert key == shape.key_of(row)
    assert {key: 1}[shape.key_of(row)] == 1


@pytest.mark.parametrize("shape", [ONE, TWO])
def test_row_without_key(shape):
    """A row that lacks a column of the key has none."""
    with pytest.raises(KeyError):
        shape.key_of({"order": 1})


@pytest.mark.parametrize(("key", "count", "values"), [(7, 1, [7]), ((1, 2), 2, [1, 2])])
def test_key_list(key, count, values):
    """The values of a key are one for each column."""
    assert values == list(key_list(key, count))


def test_key_row():
    """A key is written back into its columns."""
    assert {"id": 7} == ONE.key_row(7)
    assert {"order": "x", "line": 2} == TWO.key_row(("x", 2))


# --- rows and frames ------------------------------------------------------------------------------


def test_row_that_was_read():
    """A row tells key, version and transaction, where the table has them."""
    row = {"id": 7, "sync_ver": 3, "sync_xid": 100}
    assert Seen("UPDATE", 7, row, {}, 3, 100, raw=row) == ONE.read(row)
    assert Seen("INSERT", 7, row, {}, raw=row) == PLAIN.read(row, "INSERT")


@pytest.mark.parametrize("kind", ["INSERT", "UPDATE"])
def test_frame_of_a_row(kind):
    """A frame tells what a read row tells, and when it was committed."""
    row = {"id": 7, "sync_ver": 3, "sync_xid": 100}
    payload = frame(kind, record=row)
    assert Seen(kind, 7, row, {}, 3, 100, AT, raw=payload) == ONE.live(payload)


def test_frame_of_supabase_py():
    """supabase-py makes an enum of the type; ours is the plain word."""
    seen = PLAIN.live(frame(ListenEvent.Insert, record={"id": 7}))
    assert "INSERT" == seen.type


def test_frame_of_a_delete():
    """A delete tells the old key, and has no version."""
    payload = frame("DELETE", old_record={"id": 7, "value": 1}, record=None)
    old = {"id": 7, "value": 1}
    assert Seen("DELETE", 7, {}, old, at=AT, raw=payload) == ONE.live(payload)


def test_frame_without_key():
    """A delete of a table without a primary key tells nothing that could be believed."""
    with pytest.raises(KeyError):
        ONE.live(frame("DELETE", old_record=None))


PARTIAL: list[tuple[str, Shape, dict[str, Any]]] = [
    ("over 1 MiB", PLAIN, frame(record={"id": 7}, errors=["Error 413: Payload Too Large"])),
    (
        "large values that did not change",
        PLAIN,
        frame(record={"id": 7}, columns=columns(id="int8", big="text")),
    ),
    ("a version that was cut", ONE, frame(record={"id": 7, "sync_ver": None})),
]


@pytest.mark.parametrize(
    ("shape", "payload"), [case[1:] for case in PARTIAL], ids=[case[0] for case in PARTIAL]
)
def test_partial_frame(shape, payload):
    """Of a frame that lacks values only the key is believed."""
    seen = shape.live(payload)
    assert (7, True) == (seen.key, seen.partial)


def test_bytea_reads_the_same_live_and_read():
    r"""Realtime leaves out the `\x` of bytea, in both records; nothing else is touched."""
    types = columns(id="int8", data="bytea", note="text", none="bytea")
    row = {"id": 7, "data": "0aff", "note": "0aff", "none": None}
    seen = PLAIN.live(frame(record=row, old_record=row, columns=types))
    same = {"id": 7, "data": "\\x0aff", "note": "0aff", "none": None}
    assert (same, same) == (seen.new, seen.old)
    assert "0aff" == row["data"], "the frame itself stays as it is"


MOVED: list[tuple[dict[str, Any], Any]] = [
    (frame(record={"id": 8}, old_record={"id": 7}), 7),
    (frame(record={"id": 7}, old_record={"id": 7}), None),
    (frame(record={"id": 7}), None),
    (frame(record={"id": 7}, old_record={"value": 1}), None),
    (frame("INSERT", record={"id": 7}, old_record={"id": 6}), None),
]


@pytest.mark.parametrize(("payload", "key"), MOVED)
def test_row_with_a_new_key(payload, key):
    """An UPDATE that tells another old key has moved the row."""
    assert key == PLAIN.moved_from(PLAIN.live(payload))


def test_change():
    """A handler is told all that is known."""
    payload = frame(record={"id": 7, "sync_ver": 3, "sync_xid": 100}, old_record={"id": 7})
    change = ONE.change(ONE.live(payload), "INSERT", "catch_up")
    assert ("INSERT", "public", "orders", 7) == (
        change.type,
        change.schema,
        change.table,
        change.key,
    )
    assert ({"id": 7, "sync_ver": 3, "sync_xid": 100}, {"id": 7}) == (change.new, change.old)
    assert (AT, "catch_up", 3) == (change.commit_timestamp, change.source, change.version)
    assert payload is change.raw


# --- the change log -------------------------------------------------------------------------------

ENTRY = {
    "seq": 5,
    "xid": 100,
    "schema_name": "public",
    "table_name": "orders",
    "op": "UPDATE",
    "key": [7],
    "new": {"id": 7},
    "old": {"id": 7, "value": 1},
    "at": AT,
}
SEEN = Seen("UPDATE", 7, {"id": 7}, {"id": 7, "value": 1}, 5, 100, AT)
LOG = LogShape(PLAIN)


def test_entry_that_was_read():
    """An entry is the change that it tells of; its number is the version."""
    assert SEEN._replace(raw=ENTRY) == LOG.read(ENTRY)


def test_entry_that_came_live():
    """A frame of the log's table tells the same."""
    payload = frame("INSERT", record=ENTRY)
    assert SEEN._replace(raw=payload) == LOG.live(payload)


@pytest.mark.parametrize(
    "other", [{"schema_name": "private"}, {"table_name": "lines"}, {"schema_name": None}]
)
def test_entry_of_another_table(other):
    """The log is that of all tables; the entries of others are not ours."""
    assert LOG.live(frame("INSERT", record={**ENTRY, **other})) is None


def test_frame_without_entry():
    """A frame that Realtime emptied is nobody's."""
    assert LOG.live(frame("INSERT", record=None, columns=[])) is None


def test_entry_of_a_truncate():
    """A TRUNCATE has no key and no rows."""
    entry = {**ENTRY, "op": "TRUNCATE", "key": None, "new": None, "old": None}
    assert Seen("TRUNCATE", None, {}, {}, 5, 100, AT, raw=entry) == LOG.read(entry)


def test_entry_with_a_composite_key():
    """The values of a key are in the order of its columns."""
    assert ("x", 2) == LogShape(TWO).read({**ENTRY, "key": ["x", 2]}).key


@pytest.mark.parametrize(
    "data",
    [
        {"errors": ["Error 413: Payload Too Large"]},
        {"columns": columns(**dict.fromkeys([*ENTRY, "more"], "text"))},
    ],
)
def test_partial_entry(data):
    """An entry over 1 MiB has to be read."""
    seen = LOG.live(frame("INSERT", record=ENTRY, **data))
    assert seen is not None
    assert seen.partial
