"""A client of Realtime that shows each frame as it came, and what its tests say often."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from supabase_resilience.local import LocalSupabase

PATIENCE = 30.0  # seconds; only a hang takes that long


def sql(local: LocalSupabase, statement: str, *params: object) -> None:
    """Run a statement and commit it."""
    with local.postgres.connect("postgres") as db:
        db.execute(statement.encode(), params)


class Phoenix:
    """A client that shows each frame as it came."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.refs = map(str, itertools.count(1))

    async def push(
        self,
        event: str,
        payload: dict[str, Any] | None = None,
        *,
        topic: str = "realtime:t",
        join_ref: str | None = None,
    ) -> str:
        """Send a frame; return its ref."""
        ref = next(self.refs)
        join_ref = ref if event == "phx_join" else join_ref
        message = {
            "topic": topic,
            "event": event,
            "payload": payload or {},
            "ref": ref,
            "join_ref": join_ref,
        }
        await self.socket.send(json.dumps(message))
        return ref

    async def text(self) -> str:
        """Return the next frame as it came."""
        async with asyncio.timeout(PATIENCE):
            return str(await self.socket.recv())

    async def frame(self) -> dict[str, Any]:
        """Return the next frame."""
        return dict(json.loads(await self.text()))

    async def change(self) -> dict[str, Any]:
        """Return the data of the next frame, which must be a change."""
        frame = await self.frame()
        assert frame["event"] == "postgres_changes", frame
        return dict(frame["payload"]["data"])

    async def join(
        self, *bindings: dict[str, Any], topic: str = "realtime:t", **config: Any
    ) -> dict[str, Any]:
        """Join a topic and return the reply; `access_token` may be among the configuration."""
        token = config.pop("access_token", None)
        payload = {"config": {"postgres_changes": list(bindings), **config}, "access_token": token}
        await self.push("phx_join", payload, topic=topic)
        return await self.frame()

    async def subscribe(
        self, *bindings: dict[str, Any], topic: str = "realtime:t", **config: Any
    ) -> None:
        """Join a topic and wait until its bindings are live."""
        reply = await self.join(*bindings, topic=topic, **config)
        assert reply["payload"]["status"] == "ok", reply
        system = await self.frame()
        assert system["payload"]["message"] == "Subscribed to PostgreSQL", system


Connect = Callable[..., contextlib.AbstractAsyncContextManager[Phoenix]]


def opener(local: LocalSupabase) -> Connect:
    """Return what opens a socket on the stack's URL; with the publishable key if none is given."""

    @contextlib.asynccontextmanager
    async def open_socket(key: str | None = None) -> AsyncGenerator[Phoenix, None]:
        async with connect(websocket_url(local, key or local.publishable_key)) as socket:
            yield Phoenix(socket)

    return open_socket


def websocket_url(local: LocalSupabase, key: str, path: str = "/realtime/v1/websocket") -> str:
    return f"{local.url.replace('http', 'ws')}{path}?apikey={key}&vsn=1.0.0"


def table(name: str, **more: Any) -> dict[str, Any]:
    return {"event": "*", "schema": "public", "table": name, **more}


def system(message: str, *, status: str, extension: str = "postgres_changes") -> dict[str, Any]:
    payload = {"channel": "t", "extension": extension, "message": message, "status": status}
    return {"event": "system", "payload": payload, "ref": None, "topic": "realtime:t"}
