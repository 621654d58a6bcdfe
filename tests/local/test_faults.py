"""Faults in front of healthy servers: what the caller sees, and what the database has done."""

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from supabase_resilience.local import LocalSupabase, _child
from supabase_resilience.local._child import Child
from supabase_resilience.local._node import Command, find_node

Eventually = Callable[[Callable[[], object]], None]

SCHEMA = "create table orders (id int primary key, note text)"
GATEWAY = str(Path(_child.__file__).with_name("gateway.mjs"))
ORDERS = "/rest/v1/orders"


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalSupabase]:
    """Start one stack for this file."""
    with LocalSupabase(schema=SCHEMA) as local:
        yield local


@pytest.fixture
def local(stack: LocalSupabase) -> Iterator[LocalSupabase]:
    """Give the stack without faults and with an empty table."""
    stack.faults.clear()
    yield stack
    stack.faults.clear()
    with http(stack) as client:
        client.delete(ORDERS, params={"id": "gte.0"})


def http(local: LocalSupabase, **options: Any) -> httpx.Client:
    """Return an HTTP client of the service role."""
    return httpx.Client(base_url=local.url, headers={"apikey": local.secret_key}, **options)


@pytest.fixture
def client(local: LocalSupabase) -> Iterator[httpx.Client]:
    """Return an HTTP client of the service role that is closed afterwards."""
    with http(local) as it:
        yield it


def ids(client: httpx.Client) -> list[int]:
    """Return what is in the table."""
    rows = client.get(ORDERS, params={"select": "id", "order": "id"}).raise_for_status().json()
    return [row["id"] for row in rows]


# --- answers -------------------------------------------------------------------------------------


def test_status_and_headers(local: LocalSupabase, client: httpx.Client) -> None:
    """A status comes with its headers and its body, so many times and no more."""
    body = {"message": "try again"}
    fault = local.faults.add(
        match=ORDERS, times=2, status=503, headers={"Retry-After": "2"}, body=body
    )
    for _ in range(2):
        answer = client.get(ORDERS)
        assert (503, "2", body) == (
            answer.status_code,
            answer.headers["retry-after"],
            answer.json(),
        )
    assert 200 == client.get(ORDERS).status_code
    assert 2 == fault.count


def test_text_body(local: LocalSupabase, client: httpx.Client) -> None:
    """A body of text is sent as it is, with the content type that was asked for."""
    page = "<h1>Bad gateway</h1>"
    local.faults.add(status=502, body=page, headers={"content-type": "text/html"})
    answer = client.get(ORDERS)
    assert (page, "text/html") == (answer.text, answer.headers["content-type"])


def test_answer_without_body(local: LocalSupabase, client: httpx.Client) -> None:
    """An answer needs no body, and HEAD gets none."""
    local.faults.add(status=429, times=2, method="head", body="never seen")
    local.faults.add(status=500)
    assert (500, b"") == ((got := client.get(ORDERS)).status_code, got.content)
    assert (429, b"") == ((got := client.head(ORDERS)).status_code, got.content)


def test_match_and_method(local: LocalSupabase, client: httpx.Client) -> None:
    """A fault hits only what its pattern, searched in path and query, and its method say."""
    local.faults.add(match=r"orders\?.*id=eq\.7", method="DELETE", times=None, status=500)
    by_id = {"id": "eq.7"}
    assert 200 == client.get(ORDERS, params=by_id).status_code
    assert 204 == client.delete(ORDERS, params={"id": "eq.8"}).status_code
    assert 500 == client.delete(ORDERS, params=by_id).status_code


def test_order_of_faults(local: LocalSupabase, client: httpx.Client) -> None:
    """Of several faults that match, the one that was added first comes first."""
    for status in (500, 501, 502):
        local.faults.add(status=status)
    assert [500, 501, 502, 200] == [client.get(ORDERS).status_code for _ in range(4)]


def test_share_and_seed(local: LocalSupabase, client: httpx.Client) -> None:
    """A seed decides which requests are hit; the next fault has the rest."""

    def answers(seed: int) -> list[int]:
        local.faults.clear()
        local.faults.add(match=ORDERS, times=None, share=0.2, seed=seed, status=503)
        local.faults.add(match=ORDERS, times=None, status=500)
        return [client.get(ORDERS).status_code for _ in range(200)]

    first, again, other = answers(1), answers(1), answers(2)
    assert first == again
    assert first != other
    assert {500, 503} == set(first)
    assert 40 == pytest.approx(first.count(503), abs=20)


def test_remove_and_clear(local: LocalSupabase, client: httpx.Client) -> None:
    """A fault without an end is ended by taking it away, and its count stays."""
    first = local.faults.add(times=None, status=500)
    local.faults.add(times=None, status=501)
    seen = [client.get(ORDERS).status_code]
    first.remove()
    seen.append(client.get(ORDERS).status_code)
    local.faults.clear()
    seen.append(client.get(ORDERS).status_code)
    assert ([500, 501, 200], 1) == (seen, first.count)


# --- lost connections ----------------------------------------------------------------------------


def test_drop_before(local: LocalSupabase, client: httpx.Client) -> None:
    """Dropped before: the caller loses the connection, and the database never hears of it."""
    local.faults.add(method="POST", drop="before")
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(ORDERS, json={"id": 1})
    assert [] == ids(client)


def test_drop_after(local: LocalSupabase, client: httpx.Client) -> None:
    """Dropped after: the row is there when the caller loses the connection."""
    local.faults.add(method="POST", drop="after")
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(ORDERS, json={"id": 1})
    assert [1] == ids(client)


def test_drop_in_body(local: LocalSupabase, client: httpx.Client) -> None:
    """Dropped in the body: the headers and half of the body arrive, and the row is there."""
    local.faults.add(method="POST", drop="body")
    wanted = {"Prefer": "return=representation"}
    with client.stream("POST", ORDERS, json={"id": 1, "note": "x" * 100}, headers=wanted) as got:
        assert 201 == got.status_code
        pieces: list[bytes] = []
        with pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(got.iter_bytes())
    whole = json.dumps([{"id": 1, "note": "x" * 100}], separators=(",", ":")).encode()
    assert whole[: len(whole) // 2] == b"".join(pieces)
    assert [1] == ids(client)


def test_delay_outlasts_the_caller(
    local: LocalSupabase, client: httpx.Client, eventually: Eventually
) -> None:
    """A delayed write happens although its caller gave up: the timeout proves nothing."""
    local.faults.add(method="POST", delay=0.3)
    with pytest.raises(httpx.ReadTimeout), http(local, timeout=0.05) as hasty:
        hasty.post(ORDERS, json={"id": 1})
    eventually(lambda: [1] == ids(client))


def test_delay_only(local: LocalSupabase, client: httpx.Client) -> None:
    """A delay by itself ends in the servers' own answer."""
    fault = local.faults.add(delay=0.01)
    assert (200, 1) == (client.get(ORDERS).status_code, fault.count)


def test_stall(local: LocalSupabase, client: httpx.Client) -> None:
    """A stalled request is accepted and never answered, and others are not held up by it."""
    local.faults.add(method="POST", stall=True)
    with pytest.raises(httpx.ReadTimeout), http(local, timeout=0.2) as patient:
        patient.post(ORDERS, json={"id": 1})
    assert [] == ids(client)


# --- WebSockets ----------------------------------------------------------------------------------


def socket_url(local: LocalSupabase) -> str:
    """Return where a Realtime client connects."""
    host = local.url.removeprefix("http://")
    return f"ws://{host}/realtime/v1/websocket?apikey={local.publishable_key}&vsn=1.0.0"


async def heartbeat(local: LocalSupabase) -> Any:
    """Return the reply to one heartbeat."""
    async with websockets.connect(socket_url(local)) as socket:
        beat = {"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": "1"}
        await socket.send(json.dumps(beat))
        return json.loads(await socket.recv())["payload"]["status"]


def test_upgrade_passes(local: LocalSupabase) -> None:
    """A WebSocket reaches Realtime through the same URL."""
    assert "ok" == asyncio.run(heartbeat(local))


def test_upgrade_refused(local: LocalSupabase) -> None:
    """An upgrade is a request that a status can hit, and the next one passes."""
    local.faults.add(match="/realtime/v1/websocket", status=503, headers={"Retry-After": "1"})
    with pytest.raises(websockets.InvalidStatus) as refused:
        asyncio.run(heartbeat(local))
    answer = refused.value.response
    assert (503, "1") == (answer.status_code, answer.headers["Retry-After"])
    assert "ok" == asyncio.run(heartbeat(local))


@pytest.mark.parametrize("drop", ["before", "after"])
def test_upgrade_dropped(local: LocalSupabase, drop: Any) -> None:
    """An upgrade whose connection is dropped never becomes a WebSocket."""
    fault = local.faults.add(match="/realtime/", drop=drop)
    with pytest.raises(websockets.InvalidMessage):
        asyncio.run(heartbeat(local))
    assert 1 == fault.count


def test_upgrade_stalled(local: LocalSupabase) -> None:
    """A stalled upgrade leaves the client waiting for the handshake."""
    local.faults.add(match="/realtime/", stall=True)

    async def connect() -> None:
        await websockets.connect(socket_url(local), open_timeout=0.2)

    with pytest.raises(TimeoutError):
        asyncio.run(connect())


# --- servers that are down -----------------------------------------------------------------------


def test_rest_killed(local: LocalSupabase, client: httpx.Client) -> None:
    """While REST is down the gateway answers as Supabase's does, and Realtime goes on."""
    local.rest.kill()
    try:
        answer = client.get(ORDERS)
        words = "An invalid response was received from the upstream server"
        assert (502, {"message": words}) == (answer.status_code, answer.json())
        assert "application/json" in answer.headers["content-type"]
        assert "ok" == asyncio.run(heartbeat(local))
    finally:
        local.rest.start()
    assert 200 == client.get(ORDERS).status_code


def test_realtime_killed(local: LocalSupabase, client: httpx.Client) -> None:
    """While Realtime is down its upgrades are refused, and REST goes on."""
    local.realtime.kill()
    try:
        with pytest.raises(websockets.InvalidStatus, match="502"):
            asyncio.run(heartbeat(local))
        assert 200 == client.get(ORDERS).status_code
    finally:
        local.realtime.start()
    assert "ok" == asyncio.run(heartbeat(local))


# --- the gateway before a server that we play ourselves ------------------------------------------


class Server:
    """A server that reads requests and says what it is told to say, byte by byte."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.received: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self.answers:
            connection, _ = self._socket.accept()
            with connection:
                while self.answers and (request := connection.recv(65536)):
                    self.received.append(request)
                    connection.sendall(answer := self.answers.pop(0))
                    if not answer.endswith(b"ok"):
                        break

    def close(self) -> None:
        self._thread.join()
        self._socket.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Before = Callable[..., tuple[Server, httpx.Client]]


@pytest.fixture
def before(tmp_path: Path) -> Iterator[Before]:
    """Return a function that puts a gateway before a server with these answers."""
    with ExitStack() as cleanup:

        def start(*answers: bytes) -> tuple[Server, httpx.Client]:
            server = Server(*answers)
            node = Command([str(find_node().executable), GATEWAY], tmp_path, dict(os.environ))
            config = {"port": 0, "upstreams": {"rest": server.port, "realtime": None}}
            gateway = Child("gateway", node, config, log=tmp_path / "gateway.log")
            cleanup.callback(server.close)
            cleanup.callback(gateway.stop)
            url = f"http://127.0.0.1:{gateway.port}"
            return server, cleanup.enter_context(httpx.Client(base_url=url))

        yield start


def test_gateway_changes_nothing(before: Before) -> None:
    """Method, path, query, headers and body arrive as they were sent."""
    server, client = before(OK)
    content = b'{"a": "\xc3\xa9"}'
    answer = client.patch("/rest/v1/a%20b?c=%22d%22", content=content, headers={"X-Odd": "Yes"})
    head, _, body = server.received[0].partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert ("PATCH /rest/v1/a%20b?c=%22d%22 HTTP/1.1", content) == (first, body)
    assert {"X-Odd: Yes", f"Host: {client.base_url.netloc.decode()}"} <= set(headers)
    assert (200, "ok") == (answer.status_code, answer.text)


def test_gateway_sends_once(before: Before) -> None:
    """A server that breaks off before it answers has its request lost, never sent again."""
    server, client = before(b"", OK)
    words = "An invalid response was received from the upstream server"
    assert (502, {"message": words}) == ((got := client.post("/", json={})).status_code, got.json())
    assert 1 == len(server.received)
    assert 200 == client.post("/", json={}).status_code


def test_gateway_heeds_close(before: Before) -> None:
    """A connection that the server says it closes carries no further request."""
    bye = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbye"
    server, client = before(OK, bye, OK)
    answers = [client.post("/", json={}).text for _ in range(3)]
    assert (["ok", "bye", "ok"], 3) == (answers, len(server.received))


def test_gateway_passes_half_answers_as_such(before: Before) -> None:
    """A server that breaks off in its answer is seen to do so, not taken for one that ended."""
    _, client = before(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/")


# --- counting ------------------------------------------------------------------------------------


def test_requests(local: LocalSupabase, client: httpx.Client) -> None:
    """Requests are counted as they arrive, those with a fault included."""
    pattern = r"/orders\?counted"
    before = local.requests(match=pattern)
    local.faults.add(method="POST", status=503)
    client.get(f"{ORDERS}?counted=eq.1")
    client.post(f"{ORDERS}?counted=eq.1", json={})
    client.get(f"{ORDERS}?other=eq.1")
    assert 2 == local.requests(match=pattern) - before
    assert 1 == local.requests(match=pattern, method="post")


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"match": "orders(", "status": 500}, r"match='orders\(' is no regular expression"),
        ({"match": "(?P<x>a)", "status": 500}, r"match='\(\?P<x>a\)' is no plain regular"),
        ({"drop": "before", "status": 500}, "status and drop contradict each other"),
        ({"drop": "after", "stall": True}, "drop and stall contradict each other"),
        ({"drop": "sometimes"}, "drop must be 'before', 'after' or 'body', got 'sometimes'"),
        ({"body": "x", "drop": "before"}, "headers and body belong to an answer"),
        ({"times": 0, "status": 500}, "times must be at least 1, or None for ever, got 0"),
        ({"share": 0.0, "status": 500}, "share must be above 0 and at most 1, got 0.0"),
        ({"share": 5, "status": 500}, "share must be above 0 and at most 1, got 5"),
        ({"status": 500, "headers": {"X-Bad": "a\nb"}}, "Invalid character in header content"),
        ({"status": 99}, "status must be from 200 to 599, got 99"),
        ({"delay": -1.0}, "delay must be a number of seconds from 0 on, got -1.0"),
        ({}, "the fault does nothing"),
    ],
)
def test_mistakes(local: LocalSupabase, mistake: dict[str, Any], words: str) -> None:
    """A fault that cannot be meant is refused at once."""
    with pytest.raises(ValueError, match=words):
        local.faults.add(**mistake)
