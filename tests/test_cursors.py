"""Cursor stores without a server: what was saved comes back, and a crash leaves all or nothing."""

import os
from pathlib import Path
from typing import Any

import pytest
from supabase import AsyncClient, Client

from supabase_resilience import AsyncTableCursor, FileCursor, MemoryCursor, TableCursor
from supabase_resilience.errors import ResilienceError

KEY = "sb_secret_of_nobody"
URL = "http://127.0.0.1:9"
VALUES: list[dict[str, Any]] = [
    {},
    {"xid": 2**62, "history": "é\n\"'"},
    {"deep": [{"a": None}, 1.5, True]},
]


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path) -> MemoryCursor | FileCursor:
    """Both stores keep the same promises."""
    return MemoryCursor() if request.param == "memory" else FileCursor(tmp_path / "cursor.json")


def test_nothing_saved(store):
    """There is nothing before the first `save()`."""
    assert store.load() is None


@pytest.mark.parametrize("value", VALUES)
def test_saved(store, value):
    """What was saved last comes back."""
    store.save({"old": 1})
    store.save(value)
    assert value == store.load()


def test_a_copy_is_saved(store):
    """What is changed afterwards, on either side, changes nothing in the store."""
    value: dict[str, Any] = {"list": [1]}
    store.save(value)
    value["list"].append(2)
    loaded = store.load()
    assert loaded is not None
    loaded["list"].append(3)
    assert {"list": [1]} == store.load()


def test_no_json(store):
    """It is refused, and what was saved before stays."""
    store.save({"good": 1})
    with pytest.raises(TypeError):
        store.save({"bad": object()})
    assert {"good": 1} == store.load()


def test_a_file_outlives_its_process(tmp_path):
    """Another store of the same path goes on; folders are made as needed."""
    path = tmp_path / "deep" / "er" / "cursor.json"
    FileCursor(str(path)).save({"xid": 7})
    assert {"xid": 7} == FileCursor(path).load()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_file_that_cannot_be_written(tmp_path, monkeypatch, fails):
    """The old content stays, and no other file is left."""
    store = FileCursor(tmp_path / "cursor.json")
    store.save({"old": 1})

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError, match="no space left"):
        store.save({"new": 1})
    assert {"old": 1} == store.load()
    assert ["cursor.json"] == [each.name for each in tmp_path.iterdir()]


@pytest.mark.parametrize(
    "content", [b"", b"no json", b"[]", b'"text"', b"7", b"\xff\xfe", b'{"cut": ']
)
def test_a_file_of_something_else(tmp_path, content):
    """It is refused, told what to do, and left as it is."""
    path: Path = tmp_path / "cursor.json"
    path.write_bytes(content)
    with pytest.raises(ResilienceError, match="delete the file to begin anew, or name another"):
        FileCursor(path).load()
    assert content == path.read_bytes()


@pytest.mark.parametrize("path", ["", 7])
def test_no_path(path):
    """It is refused at once."""
    with pytest.raises((ValueError, TypeError), match=r"path|PathLike"):
        FileCursor(path)


@pytest.fixture
def client() -> Client:
    return Client(URL, KEY)


@pytest.fixture
def async_client() -> AsyncClient:
    return AsyncClient(URL, KEY)


def test_the_other_colour(client, async_client):
    """It is named."""
    with pytest.raises(TypeError, match="use AsyncTableCursor"):
        TableCursor(async_client, "mail")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="use TableCursor"):
        AsyncTableCursor(client, "mail")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="client must be a supabase Client, got None"):
        TableCursor(None, "mail")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"name": ""}, ValueError, "name must not be empty"),
        ({"name": 7}, TypeError, "name must be a string"),
        ({"name": "mail", "token": ""}, ValueError, "token must not be empty"),
    ],
)
def test_bad_options(client, async_client, options, kind, message):
    """Both colours refuse them at once."""
    with pytest.raises(kind, match=message):
        TableCursor(client, **options)
    with pytest.raises(kind, match=message):
        AsyncTableCursor(async_client, **options)


def test_what_they_are_called(tmp_path, client, async_client):
    """Their names show where they keep it, and no key."""
    path = tmp_path / "cursor.json"
    assert [
        "<MemoryCursor>",
        f"<FileCursor {str(path)!r}>",
        "<TableCursor 'mail'>",
        "<AsyncTableCursor 'mail'>",
    ] == [
        repr(each)
        for each in (
            MemoryCursor(),
            FileCursor(path),
            TableCursor(client, "mail"),
            AsyncTableCursor(async_client, "mail"),
        )
    ]
