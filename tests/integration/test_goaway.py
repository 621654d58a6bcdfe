"""One HTTP/2 connection, many calls on it, and a server that ends it: GOAWAY by a real server.

A gateway that restarts or moves traffic says GOAWAY and closes; every call on the connection fails
in that moment. It is one event, and must count as one failure. Only async: an `httpx.Client` with
HTTP/2 breaks when threads share it, so nobody has many calls in flight on one.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event, RequestReceived, StreamEnded
from supabase import AsyncClientOptions, acreate_client

from supabase_resilience import AsyncProtectedClient, CircuitBreaker, RetryConfig, protect
from supabase_resilience.testing import FakeClock

pytestmark = pytest.mark.anyio

KEY = "sb_publishable_key"
CALLS = 20
PATIENCE = 20.0  # seconds; far more than any of it takes, so that only a hang ends here


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio, as supabase-py does."""
    return "asyncio"


# --- the server ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a certificate for 127.0.0.1 that is its own authority, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, form, plain) + made.public_bytes(pem))
    return file


class Server:
    """Answers rows over HTTP/2; on each of the first `fateful` connections it says GOAWAY.

    It does so when `calls` requests have arrived on the connection, of which it has answered the
    first `answered`: what GOAWAY calls the last stream processed.
    """

    def __init__(self, *, calls: int = CALLS, answered: int = 0, fateful: int = 1) -> None:
        self.connections = 0
        self.processed = 0
        self.requests: list[tuple[str, int]] = []
        self._calls = calls
        self._answered = answered
        self._fateful = fateful

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        self.connections += 1
        number = self.connections
        http = H2Connection(H2Configuration(client_side=False))
        http.initiate_connection()
        streams: list[int] = []
        with suppress(ConnectionError, ssl.SSLError):
            while data := await self._exchange(http, reader, writer):
                for event in http.receive_data(data):
                    if isinstance(event, ConnectionTerminated):
                        break
                    self._hear(http, event, number, streams)
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    async def _exchange(
        self, http: H2Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        """Send what is to be sent; return what arrives, or nothing when this is the end."""
        writer.write(http.data_to_send())
        await writer.drain()
        is_over = http.state_machine.state.name == "CLOSED"
        return b"" if is_over else await reader.read(65_536)

    def _hear(self, http: H2Connection, event: Event, number: int, streams: list[int]) -> None:
        if isinstance(event, RequestReceived):
            self.requests.append((dict(event.headers)[b":method"].decode(), number))
        if not isinstance(event, StreamEnded):  # its body may be on its way
            return
        streams.append(event.stream_id)
        if number > self._fateful:
            self._answer(http, event.stream_id)
        elif len(streams) == self._calls:
            for stream in streams[: self._answered]:
                self._answer(http, stream)
            last = streams[self._answered - 1] if self._answered else 0
            http.close_connection(ErrorCodes.NO_ERROR, last_stream_id=last)

    def _answer(self, http: H2Connection, stream: int) -> None:
        self.processed += 1
        http.send_headers(stream, [(":status", "200"), ("content-type", "application/json")])
        http.send_data(stream, json.dumps([{"id": stream}]).encode(), end_stream=True)


@asynccontextmanager
async def serving(
    server: Server, certificate: Path, **options: Any
) -> AsyncIterator[AsyncProtectedClient]:
    """Run the server, and give a protected client whose calls share one connection to it."""
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(certificate)
    ours.set_alpn_protocols(["h2"])
    theirs = ssl.create_default_context(cafile=certificate)
    running: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.append(asyncio.ensure_future(server.serve(reader, writer)))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ours) as listening:
        url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(http2=True, verify=theirs, timeout=PATIENCE) as session:
            settings = AsyncClientOptions(httpx_client=session)
            yield protect(await acreate_client(url, KEY, settings), **options)
        listening.close()
        await asyncio.wait_for(asyncio.gather(*running), PATIENCE)


async def read(client: AsyncProtectedClient) -> int:
    return len((await client.table("t").select("*").execute()).data)


async def insert(client: AsyncProtectedClient) -> int:
    return len((await client.table("t").insert({"id": 1}).execute()).data)


async def at_once(call: Any, client: AsyncProtectedClient) -> list[Any]:
    """What many calls at once give: 1 for a row, or the class of the error."""
    ends = await asyncio.gather(*(call(client) for _ in range(CALLS)), return_exceptions=True)
    return [type(end) if isinstance(end, BaseException) else end for end in ends]


@pytest.fixture
def breaker() -> Iterator[CircuitBreaker]:
    """Give a breaker that two failures open, and that pays for any number of retries."""
    options = {"jitter": 0.0, "clock": FakeClock(), "on_event": id}
    return CircuitBreaker(failure_threshold=2, **options)


# --- what is promised ---------------------------------------------------------------------------


async def test_one_goaway_is_one_failure(breaker: CircuitBreaker, certificate: Path) -> None:
    """Every call on the connection fails, the breaker counts one, and the circuit stays closed."""
    server = Server()
    async with serving(server, certificate, breaker=breaker, retry=None) as client:
        assert [httpx.RemoteProtocolError] * CALLS == await at_once(read, client)
        stats = breaker.get_stats()
        assert (1, CALLS - 1, "closed") == (stats.failures, stats.neutral, stats.state)
        assert [1] * CALLS == await at_once(read, client)
    assert 2 == server.connections


async def test_reads_are_repeated_after_a_goaway(
    breaker: CircuitBreaker, certificate: Path
) -> None:
    """With retries nobody notices: each read succeeds on the next connection."""
    server = Server()
    async with serving(server, certificate, breaker=breaker) as client:
        assert [1] * CALLS == await at_once(read, client)
    stats = breaker.get_stats()
    assert (1, CALLS, CALLS) == (stats.failures, stats.retries, stats.successes)
    assert [("GET", 1)] * CALLS + [("GET", 2)] * CALLS == server.requests


async def test_graceful_goaway(breaker: CircuitBreaker, certificate: Path) -> None:
    """A GOAWAY that comes right behind half of the answers is one failure at most, too.

    httpx itself sends again what the server says it has not processed, and loses the answers that
    arrived together with the GOAWAY; so those are the ones that are repeated.
    """
    server = Server(answered=CALLS // 2)
    async with serving(server, certificate, breaker=breaker) as client:
        assert [1] * CALLS == await at_once(read, client)
    stats = breaker.get_stats()
    assert (1, CALLS) == (stats.failures, stats.successes)
    assert 0 < stats.retries <= CALLS // 2


async def test_graceful_goaway_applies_inserts_once(
    breaker: CircuitBreaker, certificate: Path
) -> None:
    """What the server had processed is not sent again, what it had not is: each insert once."""
    server = Server(answered=CALLS // 2)
    async with serving(server, certificate, breaker=breaker) as client:
        ends = await at_once(insert, client)
    assert {1, httpx.RemoteProtocolError} == set(ends)
    assert CALLS == server.processed
    assert (1, 0) == (breaker.get_stats().failures, breaker.get_stats().retries)


async def test_inserts_are_not_repeated_after_a_goaway(
    breaker: CircuitBreaker, certificate: Path
) -> None:
    """Which calls the server has processed is not told by httpx, so no insert is sent again."""
    server = Server()
    async with serving(server, certificate, breaker=breaker) as client:
        assert [httpx.RemoteProtocolError] * CALLS == await at_once(insert, client)
    assert [("POST", 1)] * CALLS == server.requests


async def test_two_goaways_are_two_failures(breaker: CircuitBreaker, certificate: Path) -> None:
    """A server that says GOAWAY to one connection after the other counts as failing."""
    server = Server(fateful=2)
    async with serving(server, certificate, breaker=breaker, retry=None) as client:
        for _ in range(2):
            assert [httpx.RemoteProtocolError] * CALLS == await at_once(read, client)
    assert (2, "open") == (breaker.get_stats().failures, breaker.get_state())


async def test_goaway_on_an_idle_connection_is_no_failure(
    breaker: CircuitBreaker, certificate: Path
) -> None:
    """A server that ends a connection nobody uses costs nothing: httpx opens the next one."""
    server = Server(calls=1, answered=1)
    retry = RetryConfig(wait_initial=0.0)
    async with serving(server, certificate, breaker=breaker, retry=retry) as client:
        assert [1, 1] == [await read(client), await read(client)]
    assert (0, 2) == (breaker.get_stats().failures, server.connections)
