"""`queue NAME`: a look at a queue on Supabase, and what is done with its dead letters.

It shows ids, numbers and errors; what is in the jobs only when asked for it.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
from postgrest.exceptions import APIError
from supabase import Client, ClientOptions, SupabaseException, create_client

from supabase_resilience import (
    DeadLetter,
    QueueError,
    ResilienceError,
    SupabaseQueue,
    classify,
    protect,
)
from supabase_resilience.cli._table import table
from supabase_resilience.failures import words_of

__all__ = ["register"]

_UNKNOWN = "unknown: needs `sql queue`"
_PAGE = 100


def register(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "queue",
        help="look at a queue on Supabase, and at its dead letters",
        description="Show a queue of the project in SUPABASE_URL and SUPABASE_KEY (a secret key), "
        "or do something with its dead letters.",
    )
    parser.add_argument("name", help="the queue's name")
    actions = parser.add_mutually_exclusive_group()
    for flag, act, what in (
        ("--stats", _stats, "how many jobs wait, and for how long (the default)"),
        ("--dead", _dead, "the dead letters, oldest first"),
        ("--purge-dead", _purge, "delete all dead letters"),
        ("--create", _create, "make the queue, its lanes and the queue of its dead letters"),
    ):
        actions.add_argument(flag, dest="act", action="store_const", const=act, help=what)
    actions.add_argument(
        "--replay", metavar="ID", help="send a dead letter, or `all`, back to work"
    )
    parser.add_argument(
        "--lane",
        type=_lane,
        action="append",
        default=[],
        dest="lanes",
        metavar="PRIORITY=SUFFIX",
        help="a lane of the queue, for example 10=_high; may be given several times",
    )
    parser.add_argument("--limit", type=_count, default=_PAGE, help="with --dead: how many (100)")
    parser.add_argument("--show-data", action="store_true", help="with --dead: their data, too")
    parser.add_argument("--yes", action="store_true", help="with --purge-dead: don't ask")
    parser.set_defaults(run=_run, act=_stats)


def _lane(text: str) -> tuple[int, str]:
    priority, _, suffix = text.partition("=")
    if not suffix:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form PRIORITY=SUFFIX")
    try:
        return int(priority), suffix
    except ValueError:
        raise argparse.ArgumentTypeError(f"{priority!r} is not a whole number") from None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    act = _stats if options.act is None else options.act
    act = _replay if options.replay is not None else act
    try:
        with _project() as client:
            return int(act(client, SupabaseQueue(client, options.name), options))
    except (APIError, httpx.HTTPError) as error:
        _complain(f"Supabase did not do it: {_said(error)}")
    except (ResilienceError, SupabaseException) as error:
        _complain(str(error))
    return 1


def _said(error: Exception) -> str:
    """Without what PostgreSQL may quote of the data."""
    if isinstance(error, APIError):
        return words_of(error)
    return f"{classify(error).reason} ({error})"


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def _project() -> Generator[Client]:
    url, key = os.environ.get("SUPABASE_URL"), os.environ.get("SUPABASE_KEY")
    if not (url and key):
        given = {"SUPABASE_URL": url, "SUPABASE_KEY": key}
        missing = " and ".join(name for name, value in given.items() if not value)
        raise QueueError(f"set {missing}: the project's URL, and a secret (service role) key of it")
    with httpx.Client(timeout=30.0) as session:
        yield protect(create_client(url, key, ClientOptions(httpx_client=session)))


def _suffixes(options: argparse.Namespace) -> list[str]:
    return [*(suffix for _, suffix in _lanes(options)), ""]


def _lanes(options: argparse.Namespace) -> Sequence[tuple[int, str]]:
    """Highest priority first, as everywhere."""
    return sorted(options.lanes, reverse=True)


# --- what it can do -------------------------------------------------------------------------------


def _stats(_: Client, queue: SupabaseQueue, options: argparse.Namespace) -> int:
    queue.check(_suffixes(options))
    metrics = queue.metrics(_suffixes(options))
    age = None if metrics.oldest_age is None else f"{metrics.oldest_age:.1f} s"
    if metrics.ready == 0:
        age = "-"
    rows = [
        ("ready", metrics.ready),
        ("delayed or in hand", metrics.delayed),
        ("oldest ready job waits", age),
        ("dead letters", metrics.dead),
    ]
    shown = [(label, _UNKNOWN if value is None else value) for label, value in rows]
    print(table(("queue", options.name), shown))
    return 0


def _dead(_: Client, queue: SupabaseQueue, options: argparse.Namespace) -> int:
    queue.check(_suffixes(options))
    letters = queue.dead_letters(options.limit)
    if not letters:
        print(f"{options.name} has no dead letters")
        return 0
    is_cut = sys.stdout.isatty() and not options.show_data
    width = shutil.get_terminal_size().columns if is_cut else None
    head = ["id", "died", "attempts", "error", "reason", *(["data"] if options.show_data else [])]
    print(table(head, [_row(each, show_data=options.show_data) for each in letters], width))
    if len(letters) == options.limit:
        print(f"(the oldest {options.limit}; --limit shows more)")
    return 0


def _row(letter: DeadLetter, *, show_data: bool) -> list[object]:
    died = datetime.fromtimestamp(letter.died_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    row: list[object] = [letter.id, died, letter.attempts, letter.error or "-", letter.reason]
    return [*row, json.dumps(letter.data, ensure_ascii=False)] if show_data else row


def _replay(_: Client, queue: SupabaseQueue, options: argparse.Namespace) -> int:
    queue.check(_suffixes(options))
    if options.replay == "all":
        count = sum(queue.replay(id_, _lanes(options)) for id_ in _all_dead(queue))
        print(f"{count} of {options.name} replayed")
        return 0
    if not queue.replay(options.replay, _lanes(options)):
        _complain(f"{options.name} has no dead letter {options.replay!r}; --dead lists them")
        return 1
    print(f"{options.replay} replayed")
    return 0


def _all_dead(queue: SupabaseQueue) -> Iterator[str]:
    """Each id once: one that is replayed may well die again meanwhile."""
    seen: set[str] = set()
    while new := [each.id for each in queue.dead_letters(_PAGE) if each.id not in seen]:
        seen.update(new)
        yield from new


def _purge(_: Client, queue: SupabaseQueue, options: argparse.Namespace) -> int:
    queue.check(_suffixes(options))
    if not (options.yes or _is_sure(options.name)):
        _complain("nothing was deleted")
        return 1
    print(f"{queue.purge_dead_letters()} dead letters of {options.name} deleted")
    return 0


def _is_sure(name: str) -> bool:
    try:
        answer = input(f"Delete all dead letters of {name} for good? [y/N] ")
    except EOFError:  # nobody is there to ask
        _complain("\n--yes says so without being asked")
        return False
    return answer.strip().lower() in {"y", "yes"}


def _create(_: Client, queue: SupabaseQueue, options: argparse.Namespace) -> int:
    queue.create(_suffixes(options))
    print(f"{options.name} is there, and takes jobs")
    return 0
