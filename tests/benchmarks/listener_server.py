"""A Realtime server that does nothing but send prepared changes, faster than any client reads them.

`listener_server.py` is a process of its own, so that a client has a core to itself. It prints its
port, and for each line `first count` on stdin it sends those changes to the clients that are there.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

LIVE_KEYS = 10_000
FIRST_XID = 1_000
_PORTION = 20_000  # frames that are made ahead of being sent
_AT = "2026-01-01T00:00:00.000Z"
_COLUMNS = {
    "items": {
        "id": "int8",
        "name": "text",
        "amount": "numeric",
        "is_open": "bool",
        "meta": "jsonb",
        "updated_at": "timestamptz",
        "sync_ver": "int8",
        "sync_xid": "int8",
    },
    "changes": {
        "seq": "int8",
        "xid": "int8",
        "schema_name": "text",
        "table_name": "text",
        "op": "text",
        "key": "jsonb",
        "new": "jsonb",
        "old": "jsonb",
        "at": "timestamptz",
    },
}


def row(n: int) -> dict[str, Any]:
    """The n-th change updates one row of `LIVE_KEYS`."""
    return {
        "id": n % LIVE_KEYS,
        "name": f"number {n}",
        "amount": n / 100,
        "is_open": n % 2 == 0,
        "meta": {"color": "red", "sizes": [1, 2, 3]},
        "updated_at": f"2026-01-01T00:00:00.{n % 1_000_000:06}+00:00",
        "sync_ver": n + 1,
        "sync_xid": FIRST_XID + n,
    }


def entry(n: int) -> dict[str, Any]:
    """The same change as the log tells of it."""
    new = row(n)
    return {
        "seq": n + 1,
        "xid": FIRST_XID + n,
        "schema_name": "public",
        "table_name": "items",
        "op": "UPDATE",
        "key": [new["id"]],
        "new": new,
        "old": {**new, "is_open": not new["is_open"]},
        "at": new["updated_at"],
    }


def frame(topic: str, table: str, n: int) -> str:
    is_log = table == "changes"
    data = {
        "columns": [{"name": name, "type": kind} for name, kind in _COLUMNS[table].items()],
        "commit_timestamp": _AT,
        "errors": None,
        "old_record": {} if is_log else {"id": n % LIVE_KEYS},
        "record": entry(n) if is_log else row(n),
        "schema": "supabase_resilience" if is_log else "public",
        "table": table,
        "type": "INSERT" if is_log else "UPDATE",
    }
    return message(topic, "postgres_changes", {"data": data, "ids": [1]})


def message(topic: str, event: str, payload: dict[str, Any], ref: str | None = None) -> str:
    return json.dumps({"topic": topic, "event": event, "payload": payload, "ref": ref})


class Server:
    """Who has joined, and what they are sent."""

    def __init__(self) -> None:
        self._joined: dict[ServerConnection, tuple[str, str]] = {}

    async def talk(self, socket: ServerConnection) -> None:
        try:
            async for text in socket:
                await self._answer(socket, json.loads(text))
        finally:
            self._joined.pop(socket, None)

    async def _answer(self, socket: ServerConnection, told: dict[str, Any]) -> None:
        if told["event"] == "phx_join":
            await self._join(socket, told["topic"], told["ref"], told["payload"]["config"])
        else:
            await self._reply(socket, told["topic"], told["ref"], {})

    async def _join(
        self, socket: ServerConnection, topic: str, ref: str, config: dict[str, Any]
    ) -> None:
        binding = config["postgres_changes"][0]
        await self._reply(socket, topic, ref, {"postgres_changes": [{**binding, "id": 1}]})
        self._joined[socket] = topic, binding["table"]
        ready = {
            "channel": topic.removeprefix("realtime:"),
            "extension": "postgres_changes",
            "message": "Subscribed to PostgreSQL",
            "status": "ok",
        }
        await socket.send(message(topic, "system", ready))

    async def _reply(
        self, socket: ServerConnection, topic: str, ref: str, response: dict[str, Any]
    ) -> None:
        payload = {"status": "ok", "response": response}
        await socket.send(message(topic, "phx_reply", payload, ref))

    async def blast(self, first: int, count: int) -> None:
        for start in range(first, first + count, _PORTION):
            numbers = range(start, min(start + _PORTION, first + count))
            for socket, (topic, table) in list(self._joined.items()):
                for text in [frame(topic, table, n) for n in numbers]:
                    await socket.send(text)


async def main() -> None:
    server, loop = Server(), asyncio.get_running_loop()
    # Phoenix does not compress, either.
    async with serve(server.talk, "127.0.0.1", 0, compression=None) as listening:
        print(next(iter(listening.sockets)).getsockname()[1], flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            first, count = map(int, line.split())
            await server.blast(first, count)


class Blaster:
    """The server's process, for who measures."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._sent = 0
        self.url = f"http://127.0.0.1:{int(self._read())}"

    def _read(self) -> str:
        return self._process.stdout.readline() if self._process.stdout else ""

    def blast(self, count: int) -> None:
        """Send so many more changes, each newer than all before."""
        if self._process.stdin is not None:
            print(self._sent, count, file=self._process.stdin, flush=True)
            self._sent += count

    @property
    def xid(self) -> int:
        """That of the first change which has not been sent yet."""
        return FIRST_XID + self._sent


@contextmanager
def blaster() -> Generator[Blaster]:
    command = [sys.executable, __file__]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Blaster(process)
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(main())
