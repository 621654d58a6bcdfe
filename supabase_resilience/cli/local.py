"""`local`: a Supabase on this machine until Ctrl-C, for a person or a script beside it."""

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supabase_resilience.local._errors import LocalSupabaseError

if TYPE_CHECKING:
    from supabase_resilience.local import LocalSupabase

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "local",
        help="start a local Supabase (Postgres, REST, Auth, Queues, Realtime) until Ctrl-C",
        description="Start a local Supabase, print its URL and keys, and remove it at Ctrl-C.",
    )
    parser.add_argument(
        "--schema",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a file of SQL to run first; may be given several times",
    )
    parser.add_argument("--port", type=int, default=0, help="the URL's port (default: any free)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from supabase_resilience.local import LocalSupabase  # noqa: PLC0415 - an extra

        with LocalSupabase(schema=options.schema, port=options.port) as local:
            _show(local)
            threading.Event().wait()
    except LocalSupabaseError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def _show(local: "LocalSupabase") -> None:
    print(f"SUPABASE_URL={local.url}")
    print(f"SUPABASE_KEY={local.secret_key}")
    print(f"SUPABASE_PUBLISHABLE_KEY={local.publishable_key}")
    print(f"DATABASE_DSN='{local.dsn}'", flush=True)
    print("Ctrl-C ends it and removes every trace.", file=sys.stderr, flush=True)
