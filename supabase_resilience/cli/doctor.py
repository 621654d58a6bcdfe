"""`doctor`: what keeps a project from serving an app's parts, each with its fix; for people and CI.

Read-only: the API gets GET requests, the database one read-only transaction.
"""

import argparse
import asyncio
import inspect
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from supabase_resilience.cli._load import LoadError, describe, load
from supabase_resilience.cli.sql import _table as table_name
from supabase_resilience.doctor import Diagnosis, DoctorError, Finding, diagnose
from supabase_resilience.doctor._subjects import is_part

__all__ = ["register"]

_COULD_NOT_LOOK = 2
_MARKS = {"problem": "✗", "warning": "!", "unseen": "?", "ok": "✓"}
_PLAIN_MARKS = {"problem": "x", "warning": "!", "unseen": "?", "ok": "-"}
_DSN = "DATABASE_DSN"


def register(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="look for what is wrong with a project, and say how to set it right",
        description="Look at the project in SUPABASE_URL and SUPABASE_KEY, and at its database "
        "when a DSN is given, without changing anything. The exit code is 0 when there is no "
        "problem, 1 when there is one, 2 when nothing could be looked at.",
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="MODULE:PART",
        help="a Resilience, listener, verification or queue, or a function without parameters "
        "(sync or async) that makes it: it tells its tables and queues by itself",
    )
    _add_subjects(parser)
    parser.add_argument(
        "--dsn",
        help=f"the database's connection string (default: ${_DSN}); publications, policies, "
        "indexes and timeouts are visible only there",
    )
    _add_limits(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=_run)


def _add_subjects(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table",
        type=table_name,
        action="append",
        default=[],
        dest="tables",
        metavar="[SCHEMA.]TABLE",
        help="a table that a listener follows; may be given several times",
    )
    parser.add_argument(
        "--cursor-column",
        metavar="COLUMN",
        help="what the listeners of these tables recover by, for example updated_at or sync_xid",
    )
    parser.add_argument(
        "--queue",
        action="append",
        default=[],
        dest="queues",
        metavar="NAME",
        help="a queue; may be given several times",
    )
    parser.add_argument(
        "--lane",
        action="append",
        default=[],
        dest="lanes",
        metavar="SUFFIX",
        help="a lane of these queues, for example _high; may be given several times",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    for flag, kind, default, what in (
        ("--processes", _count, 1, "how many processes run these parts"),
        (
            "--realtime-rate",
            _amount,
            100.0,
            "changes times subscribers a second that the plan allows",
        ),
        ("--realtime-connections", _count, 200, "connections that the plan allows"),
        ("--timeout", _amount, 10.0, "seconds for each request and query"),
    ):
        help_ = f"{what} (default: {default:g})"
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=help_)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _run(options: argparse.Namespace) -> int:
    try:
        diagnosis = _diagnosis(options)
    except (LoadError, DoctorError) as error:
        print(error, file=sys.stderr)
        return _COULD_NOT_LOOK
    if options.json:
        print(json.dumps(diagnosis.to_dict(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(_lines(diagnosis)))
    return diagnosis.exit_code


def _diagnosis(options: argparse.Namespace) -> Diagnosis:
    url, key = os.environ.get("SUPABASE_URL"), os.environ.get("SUPABASE_KEY")
    if not (url and key):
        given = {"SUPABASE_URL": url, "SUPABASE_KEY": key}
        missing = " and ".join(name for name, value in given.items() if not value)
        raise DoctorError(f"set {missing}: the project's URL, and the key that the app uses")
    return diagnose(
        *map(_part, options.parts),
        url=url,
        key=key,
        dsn=options.dsn or os.environ.get(_DSN) or None,
        tables=[(table.schema, table.name) for table in options.tables],
        queues=options.queues,
        lanes=options.lanes,
        cursor_column=options.cursor_column,
        processes=options.processes,
        realtime_rate=options.realtime_rate,
        realtime_connections=options.realtime_connections,
        timeout=options.timeout,
    )


def _part(spec: str) -> Any:
    found = load(spec)
    if not is_part(found) and callable(found):
        try:
            found = found()
            found = asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found
        except Exception as error:  # it is the user's function
            raise LoadError(f"{spec} could not be made: {describe(error)}.") from error
    if not is_part(found):
        raise LoadError(f"{spec} is a {type(found).__name__}: there is nothing to look at.")
    return found


async def _awaited(made: Any) -> Any:
    return await made


# --- for a person ---------------------------------------------------------------------------------


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    marks = _marks()
    ranks = {severity: rank for rank, severity in enumerate(("ok", "unseen", "warning", "problem"))}
    # The worst last: there the eye is when it is done.
    for finding in sorted(diagnosis.findings, key=lambda finding: ranks[finding.severity]):
        yield from _shown(finding, marks[finding.severity])
    yield ""
    yield _summary(diagnosis)


def _marks() -> dict[str, str]:
    try:
        "".join(_MARKS.values()).encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return _PLAIN_MARKS
    return _MARKS


def _shown(finding: Finding, mark: str) -> Iterator[str]:
    yield _clean(f"{mark} {finding.check:<20} {finding.subject}: {finding.what}")
    if finding.severity == "ok":
        return
    if finding.why:
        yield f"    why  {_clean(finding.why)}"
    for number, line in enumerate(finding.fix.splitlines()):
        yield f"    {'     ' if number else 'fix  '}{_clean(line)}"


def _clean(line: str) -> str:
    """Names may hold anything, also a terminal's own commands."""
    return "".join(each if each.isprintable() else " " for each in line)


def _summary(diagnosis: Diagnosis) -> str:
    told = (
        _counted(diagnosis.problems, "problem"),
        _counted(diagnosis.warnings, "warning"),
        f"{len(diagnosis.unseen)} not seen",
    )
    return f"{', '.join(told)}. Nothing was changed."


def _counted(findings: Sequence[Finding], word: str) -> str:
    return f"{len(findings)} {word}{'' if len(findings) == 1 else 's'}"
