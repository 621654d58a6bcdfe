"""`verify module:verification`: passes over a table as a process of its own, or one for cron."""

import argparse
import asyncio
import inspect
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from supabase_resilience import (
    AsyncServerSideVerification,
    Report,
    ServerSideVerification,
    VerificationError,
    VerificationStats,
)
from supabase_resilience.cli._load import LoadError, describe, load

__all__ = ["register"]

_FAILED = 2
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_EVERY = 0.25
_WIDTH = 24


def register(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "verify",
        help="verify a table, once or until SIGTERM",
        description="Run a ServerSideVerification or AsyncServerSideVerification. With --once the "
        "exit code is the report's: 0 clean, 1 violations are left, 2 failed.",
    )
    parser.add_argument(
        "verification",
        metavar="MODULE:VERIFICATION",
        help="the verification, or a function without parameters (sync or async) that makes it",
    )
    parser.add_argument("--once", action="store_true", help="one pass, then print its report")
    parser.add_argument("--dry-run", action="store_true", help="write nothing; implies --once")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write the report, as .html or .json"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format=_FORMAT, stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return asyncio.run(_verify(options))
    except (LoadError, VerificationError) as error:
        print(error, file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return 130


async def _verify(options: argparse.Namespace) -> int:
    verification = await _made(load(options.verification), options.verification)
    once = options.once or options.dry_run or options.report is not None
    if isinstance(verification, AsyncServerSideVerification):
        if not once:
            await verification.run()
            return 0
        with _Progress(verification.get_stats):
            report = await verification.run_once(dry_run=options.dry_run)
    else:
        if not once:
            await _in_thread(verification)
            return 0
        with _Progress(verification.get_stats):
            report = await asyncio.to_thread(verification.run_once, dry_run=options.dry_run)
    return _told(report, options.report)


async def _made(found: Any, spec: str) -> ServerSideVerification | AsyncServerSideVerification:
    kinds = ServerSideVerification | AsyncServerSideVerification
    if not isinstance(found, kinds) and callable(found):
        try:
            found = found()
            found = await found if inspect.isawaitable(found) else found
        except Exception as error:  # it is the user's function
            raise LoadError(f"{spec} could not be made: {describe(error)}.") from error
    if not isinstance(found, kinds):
        raise LoadError(f"{spec} is a {type(found).__name__}, not a verification.")
    return found


async def _in_thread(verification: ServerSideVerification) -> None:
    """Its `run()` is made for the main thread, where signals arrive; the loop has nothing to do."""
    await asyncio.sleep(0)
    verification.run()


def _told(report: Report, file: Path | None) -> int:
    print(report)
    if file is not None:
        import json  # noqa: PLC0415 - only here

        text = (
            report.to_html() if file.suffix == ".html" else json.dumps(report.to_dict(), indent=2)
        )
        file.write_text(text, encoding="utf-8")
    return report.exit_code


class _Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(
        self, stats: Callable[[], VerificationStats], stream: TextIO | None = None
    ) -> None:
        self._stats = stats
        self._stream = stream or sys.stderr
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._began = time.monotonic()

    def __enter__(self) -> None:
        if self._stream.isatty():
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
            self._stream.write("\r\x1b[K")

    def _show(self) -> None:
        while not self._ended.wait(_EVERY):
            progress = self._stats().progress
            if progress is not None:
                self._stream.write(f"\r\x1b[K{bar(progress, time.monotonic() - self._began)}")
                self._stream.flush()


def bar(progress: float, seconds: float) -> str:
    """How far it is, and how long it will take."""
    full = int(progress * _WIDTH)
    left = seconds / progress - seconds if progress > 0 else 0.0
    return f"[{'#' * full}{'.' * (_WIDTH - full)}] {progress:4.0%}, about {left:,.0f} s left"
