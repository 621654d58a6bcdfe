"""`work module:queue`: the worker of a queue as a process of its own, for a container.

It brings nothing but a place to run: what is handled, and how, is all in the processor that the
module makes. Signals, draining and the time limit are those of its `run()`.
"""

import argparse
import asyncio
import inspect
import logging
import math
import sys
from collections.abc import Awaitable
from typing import Any

from supabase_resilience import AsyncQueueProcessor, QueueError, QueueProcessor
from supabase_resilience.cli._load import LoadError, describe, load

__all__ = ["register"]

_LEVELS = ("debug", "info", "warning", "error")
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def register(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "work",
        help="run the worker of a queue until SIGTERM or Ctrl-C",
        description="Run a QueueProcessor or AsyncQueueProcessor until SIGTERM or Ctrl-C; what is "
        "in hand is finished first. A second signal aborts.",
    )
    parser.add_argument(
        "queue",
        type=_spec,
        metavar="MODULE:QUEUE",
        help="the processor, or a function without parameters (sync or async) that makes it",
    )
    parser.add_argument(
        "--until-empty", action="store_true", help="end as soon as the queue has no job left"
    )
    parser.add_argument(
        "--shutdown-timeout",
        type=_seconds,
        default=25.0,
        metavar="SECONDS",
        help="how long the jobs in hand may take after SIGTERM (default: 25)",
    )
    parser.add_argument(
        "--log-level", choices=_LEVELS, default="info", help="what to log on stderr (default: info)"
    )
    parser.set_defaults(run=_run)


def _spec(text: str) -> str:
    module, _, name = text.partition(":")
    if not (module and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form module:queue")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 on")
    return seconds


def _run(options: argparse.Namespace) -> int:
    try:
        found = load(options.queue)
        _log_on_stderr(options.log_level)
        _work(found, options)
    except (LoadError, QueueError) as error:
        print(f"{options.queue}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"{options.queue}: aborted; the jobs in hand will be delivered again", file=sys.stderr
        )
        return 1
    return 0


def _log_on_stderr(level: str) -> None:
    # Nothing happens here when the module has set up logging of its own: it knows better.
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format=_FORMAT)
    if level != "debug":
        # A line per request would be a line per poll.
        logging.getLogger("httpx").setLevel(logging.WARNING)


def _work(found: Any, options: argparse.Namespace) -> None:
    how = {"until_empty": options.until_empty, "shutdown_timeout": options.shutdown_timeout}
    made = found if isinstance(found, QueueProcessor | AsyncQueueProcessor) else _make(found)
    if isinstance(made, QueueProcessor):
        made.run(**how)
    elif isinstance(made, AsyncQueueProcessor):
        asyncio.run(made.run(**how))
    elif inspect.isawaitable(made):
        asyncio.run(_work_async(made, how))
    else:
        raise _unfit(made)


async def _work_async(making: Awaitable[Any], how: dict[str, Any]) -> None:
    try:
        made = await making
    except QueueError:
        raise
    except Exception as error:
        raise LoadError(f"making the queue failed: {describe(error)}.") from error
    if not isinstance(made, AsyncQueueProcessor):
        raise _unfit(made)
    await made.run(**how)


def _make(function: Any) -> Any:
    if not callable(function):
        raise _unfit(function)
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        raise LoadError(
            "it is a function that needs arguments; give one that needs none."
        ) from None
    try:
        return function()
    except QueueError:
        raise
    except Exception as error:
        raise LoadError(f"making the queue failed: {describe(error)}.") from error


def _unfit(found: Any) -> LoadError:
    kind = type(found).__name__
    return LoadError(
        f"expected a QueueProcessor, an AsyncQueueProcessor (also from an async function), or a "
        f"function that returns one, got {kind}."
    )
