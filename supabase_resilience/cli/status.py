"""`status module:resilience`: the parts and their status page, as a process of its own."""

import argparse
import asyncio
import contextlib
import inspect
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator
from typing import Any

from supabase_resilience import AsyncResilience, Resilience, ResilienceError
from supabase_resilience._signals import handled_signals
from supabase_resilience.cli._load import LoadError, describe, load

__all__ = ["register"]

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOOK_CLOSELY = 3  # seconds that those who look at the page are given when it ends
_OWN_NAMES = ("127.0.0.1", "localhost", "::1", "[::1]")
_WARNING = (
    "warning: {host} can be reached from other machines, and whoever reaches it sees the page."
    " Behind a login: mount status_app() in your app."
)


def register(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "status",
        help="run the parts of an app, and a page that tells how they are",
        description="Start a Resilience or AsyncResilience and serve its status page until SIGTERM "
        "or Ctrl-C; then what is in hand is finished.",
    )
    parser.add_argument(
        "resilience",
        metavar="MODULE:RESILIENCE",
        help="the resilience, what status_app() made of it, or a function without parameters (sync "
        "or async) that makes one of these",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine)"
    )
    parser.add_argument(
        "--port", type=_port, default=8400, help="0 takes any free one (default: 8400)"
    )
    parser.set_defaults(run=_run)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format=_FORMAT, stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        asyncio.run(_serve(options))
    except (LoadError, ResilienceError, OSError) as error:
        print(f"{options.resilience}: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def _serve(options: argparse.Namespace) -> None:
    app = await _app_of(load(options.resilience), options.resilience)
    with contextlib.closing(_listening(options.host, options.port)) as listening:
        server = _server(app, options.host)

        def stop() -> None:
            server.should_exit = True

        with handled_signals(stop):
            async with _running(app.state.resilience):
                host, port = listening.getsockname()[:2]
                print(f"http://{f'[{host}]' if ':' in host else host}:{port}/", flush=True)
                await server.serve(sockets=[listening])


async def _app_of(found: Any, spec: str) -> Any:
    from supabase_resilience.status import status_app  # noqa: PLC0415 - an extra

    if not _is_app(found) and not isinstance(found, Resilience | AsyncResilience):
        found = await _made(found, spec)
    if _is_app(found):
        return found
    if not isinstance(found, Resilience | AsyncResilience):
        raise LoadError(f"it is a {type(found).__name__}, not a Resilience or AsyncResilience.")
    return status_app(found)


def _is_app(found: Any) -> bool:
    return hasattr(getattr(found, "state", None), "resilience")


async def _made(found: Any, spec: str) -> Any:
    if not callable(found):
        return found
    try:
        made = found()
        return await made if inspect.isawaitable(made) else made
    except Exception as error:  # it is the user's function
        raise LoadError(f"{spec} could not be made: {describe(error)}.") from error


def _listening(host: str, port: int) -> socket.socket:
    """There before anything is started: a port that is taken is told at once."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family)
    if os.name == "posix":  # elsewhere it would take a port from whoever has it
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
        made.listen()
    except BaseException:
        made.close()
        raise
    return made


def _server(app: Any, host: str) -> Any:
    try:
        import uvicorn  # noqa: PLC0415 - an extra
        from starlette.middleware.trustedhost import TrustedHostMiddleware  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the status command needs {error.name}, which is not installed."
            ' Run `pip install "supabase-resilience[status]"`.'
        ) from error
    if _is_local(host):
        # A page of someone else must not read this one by a name of its own for 127.0.0.1.
        app = TrustedHostMiddleware(app, [*_OWN_NAMES, host])
    else:
        print(_WARNING.format(host=host), file=sys.stderr)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_LOOK_CLOSELY,
    )
    return uvicorn.Server(config)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.asynccontextmanager
async def _running(resilience: Resilience | AsyncResilience) -> AsyncGenerator[None]:
    """Started, unless the module has done that, and stopped in the end."""
    if isinstance(resilience, AsyncResilience):
        async with resilience:
            yield
        return
    await asyncio.to_thread(resilience.start)
    try:
        yield
    finally:
        await asyncio.to_thread(resilience.stop)
