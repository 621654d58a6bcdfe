"""`python -m supabase_resilience.local.realtime`: run a server under the control protocol.

The first line on stdin is the configuration, the first on stdout says `ready` or `error`; after
that, commands come and are answered in order. SIGTERM closes the sockets as a deploy does.
"""

import asyncio
import logging
import os
import signal
import sys
from typing import Final

from supabase_resilience.local.realtime._control import Control, JsonObject
from supabase_resilience.local.realtime._server import Config, RealtimeServer
from supabase_resilience.local.realtime._wal import StartError

_SERVICE_RESTART: Final = 1012


async def run() -> int:
    """Serve until told to stop; return the exit code."""
    control = Control()
    try:
        server = RealtimeServer(Config(**await control.receive()))
        port = await server.start()
    except (StartError, TypeError) as error:
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
        for work in (server.wait(), _obey(server, control), terminated.wait())
    ]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await (await server.close(_SERVICE_RESTART))
    for task in done:
        task.result()


async def _obey(server: RealtimeServer, control: Control) -> None:
    while True:
        command = await control.receive()
        control.send({"id": command.get("id"), **await _answer(server, command)})


async def _answer(server: RealtimeServer, command: JsonObject) -> JsonObject:
    try:
        return {"ok": await _do(server, command)}
    except (KeyError, TypeError, ValueError) as error:
        return {"error": f"cannot do {command.get('do')!r}: {error}"}


async def _do(server: RealtimeServer, command: JsonObject) -> int | None:
    result: int | None = None
    match command.get("do"):
        case "ping":
            pass
        case "catch_up":
            await server.catch_up()
        case "connections":
            result = server.connections
        case "subscriptions":
            result = server.subscriptions
        case "subscribe_delay":
            server.set_subscribe_delay(float(command["seconds"]))
        case "close":
            # Not seen through: the owner may be what keeps a client from answering.
            await server.close(int(command.get("code", _SERVICE_RESTART)))
        case "abort":
            server.abort()
        case "stall":
            await server.stall(on=bool(command["on"]))
        case "lose_changes":
            await server.lose_changes(on=bool(command["on"]))
        case _:
            raise ValueError("no such command")
    return result


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
