"""`python -m supabase_resilience.local.realtime`: run a server under the control protocol.

The first line on stdin is the configuration, the first on stdout says `ready` or `error`; after
that, commands come and are answered in order. SIGTERM closes the sockets as a deploy does.
"""

import asyncio
import inspect
import logging
import os
import signal
import sys
from typing import Any, Final

from supabase_resilience.local.realtime._control import Control, JsonObject
from supabase_resilience.local.realtime._controls import Controls
from supabase_resilience.local.realtime._server import Config, RealtimeServer
from supabase_resilience.local.realtime._wal import StartError

_COMMANDS: Final = frozenset(
    {
        "abort",
        "catch_up",
        "close",
        "configure",
        "connections",
        "connects",
        "crash_channels",
        "kill_cdc",
        "lose_changes",
        "ping",
        "refuse",
        "stall",
        "subscriptions",
    }
)


async def run() -> int:
    """Serve until told to stop; return the exit code."""
    control = Control()
    try:
        server = RealtimeServer(Config(**await control.receive()))
        port = await server.start()
    except (StartError, TypeError, ValueError) as error:
        control.send({"error": str(error)})
        return 1
    control.send({"ready": {"port": port}})
    await _serve(server, control)
    return 0


async def _serve(server: RealtimeServer, control: Control) -> None:
    terminated = asyncio.Event()
    if sys.platform != "win32":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    tasks = [
        asyncio.ensure_future(work)
        for work in (server.wait(), _obey(server.controls, control), terminated.wait())
    ]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await (await server.controls.say_goodbye())
    for task in done:
        task.result()


async def _obey(controls: Controls, control: Control) -> None:
    while True:
        command = await control.receive()
        control.send({"id": command.pop("id", None), **await _answer(controls, command)})


async def _answer(controls: Controls, command: JsonObject) -> JsonObject:
    name = command.pop("do", None)
    try:
        return {"ok": await _do(controls, name, command)}
    except (TypeError, ValueError) as error:
        return {"error": f"cannot do {name!r}: {error}"}


async def _do(controls: Controls, name: str, arguments: JsonObject) -> Any:
    if name not in _COMMANDS:
        raise ValueError("no such command")
    result = getattr(controls, name)(**arguments)
    return await result if inspect.isawaitable(result) else result


def _exit(*_: object) -> None:
    os._exit(0)


def main() -> None:
    """Run the server; the process ends here, even if a thread still waits for the owner."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's business.
    signal.signal(signal.SIGTERM, _exit)  # Until there are sockets to say goodbye to.
    # psycopg and add_reader need a selector loop, which is not the default on Windows.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        code = runner.run(run())
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
