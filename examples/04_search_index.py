"""A search index that is never behind for good, however often its process is killed.

Run it: `python examples/04_search_index.py`. It needs no account: it starts a local Supabase and an
indexer in a process of its own, kills that process twice with documents half indexed, and compares.

Each word of a document is a line in an SQLite file. The cursor lies beside it: a new process goes
on where the index was, reads what has changed since, and tells of the rows that were deleted.
"""

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from supabase import Client, create_client

from supabase_resilience import Change, FileCursor, Recovery, realtime_listener
from supabase_resilience.local import LocalSupabase

SCHEMA = "create table documents (id int primary key, text text not null);"
TEXTS = ["the quick brown fox", "jumps over", "the lazy dog", "a stitch in time", "saves nine"]


class Index:
    """Which documents hold a word."""

    def __init__(self, directory: Path) -> None:
        self._file = sqlite3.connect(
            directory / "index.db", check_same_thread=False, isolation_level=None
        )
        self._file.execute("create table if not exists words (word text, document int)")

    def update(self, change: Change) -> None:
        """The handler: the same change twice leaves the same index."""
        self._file.execute("begin")
        self._file.execute("delete from words where document = ?", (change.key,))
        if change.type in {"INSERT", "UPDATE"}:
            words = [(word, change.key) for word in change.new["text"].split()]
            self._file.executemany("insert into words values (?, ?)", words)
        self._file.execute("commit")

    def documents(self) -> dict[int, list[str]]:
        """All of it."""
        found: dict[int, list[str]] = {}
        for word, document in self._file.execute("select word, document from words"):
            found.setdefault(document, []).append(word)
        return {document: sorted(words) for document, words in found.items()}


def run_indexer(url: str, key: str, directory: Path) -> None:
    """The process that is killed."""
    listener = realtime_listener(
        create_client(url, key),
        "documents",
        recovery=Recovery.versioned(),
        start_from="beginning",
        cursor=FileCursor(directory / "cursor.json"),
        catch_up_interval=1.0,
    )
    listener.on_change("search index", Index(directory).update)
    listener.run()


def migration() -> str:
    """The SQL of `python -m supabase_resilience sql listener --table public.documents`."""
    command = [sys.executable, "-m", "supabase_resilience", "sql", "listener"]
    return subprocess.check_output([*command, "--table", "public.documents"], text=True)


def demo(local: LocalSupabase, directory: Path) -> None:
    """Change documents, kill the indexer, change more, and see."""
    supabase = create_client(local.url, local.secret_key)
    arguments = [local.url, local.secret_key, str(directory)]
    command = [sys.executable, __file__, "indexer", *arguments]
    for round_number in range(3):
        indexer = subprocess.Popen(command)
        change_documents(supabase, round_number)
        wait_until_right(supabase, directory)
        print(f"round {round_number + 1}: the index is right; the indexer is killed")
        indexer.kill()
        indexer.wait()
        # While nobody listens: one document goes, one changes.
        supabase.table("documents").delete().eq("id", round_number * 10).execute()
        changed = {"text": f"changed in round {round_number}"}
        supabase.table("documents").update(changed).eq("id", round_number * 10 + 1).execute()
    indexer = subprocess.Popen(command)
    wait_until_right(supabase, directory)
    indexer.terminate()
    indexer.wait()
    print(f"{len(Index(directory).documents())} documents indexed, as many as there are")
    print(f"the cursor: {json.loads((directory / 'cursor.json').read_text())['table']}")


def change_documents(supabase: Client, round_number: int) -> None:
    """What the app does somewhere else."""
    rows = [{"id": round_number * 10 + n, "text": text} for n, text in enumerate(TEXTS)]
    supabase.table("documents").upsert(rows).execute()


def wait_until_right(supabase: Client, directory: Path, seconds: float = 30.0) -> None:
    """Return when the index holds what the table holds."""
    rows: Any = supabase.table("documents").select("*").execute().data
    wanted = {row["id"]: sorted(row["text"].split()) for row in rows}
    index, end = Index(directory), time.monotonic() + seconds
    while index.documents() != wanted:
        if time.monotonic() > end:
            raise TimeoutError("the index did not become right")
        time.sleep(0.05)


if __name__ == "__main__":
    if sys.argv[1:2] == ["indexer"]:
        run_indexer(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        with (
            LocalSupabase(schema=SCHEMA + migration()) as stack,
            tempfile.TemporaryDirectory() as scratch,
        ):
            demo(stack, Path(scratch))
