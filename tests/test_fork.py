"""After a fork: what a server that loads the app once and forks its workers gets of this package.

A child is a copy of the parent, made in the middle of whatever its threads were doing. It must
work all the same, be a breaker of its own, and never share a connection with its parent. What a
lock, a hook or a probe in flight at the fork does is told in `test_breaker.py`.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from supabase import Client

from supabase_resilience import CircuitBreaker, CircuitOpenError, protect
from supabase_resilience.testing import FakeClock

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

DOWN = httpx.ConnectError("no route")
KEY = "sb_publishable_key"
PATIENCE = 30.0  # seconds; far more than any of it takes, so that only a hang ends here


# --- one process and its child ------------------------------------------------------------------


def in_child(report: Callable[[], Any]) -> Any:
    """What `report()` returns in a fork of this process; a child that hangs is killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(PATIENCE))
        code = 1
        try:
            os.write(writing, json.dumps(report()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(said)


def fail(breaker: CircuitBreaker) -> None:
    with suppress(httpx.ConnectError):
        breaker.execute(throw, DOWN)


def throw(error: Exception) -> None:
    raise error


def test_child_has_a_circuit_of_its_own() -> None:
    """What the child sees of the service does not change the parent's circuit."""
    breaker = CircuitBreaker(failure_threshold=1)
    assert "open" == in_child(lambda: fail(breaker) or breaker.get_state())
    assert ("closed", 0) == (breaker.get_state(), breaker.get_stats().failures)


def test_child_goes_on_where_the_parent_was() -> None:
    """A child of a process whose circuit is open starts with an open one, and closes it itself."""
    clock = FakeClock()
    breaker = CircuitBreaker(failure_threshold=1, clock=clock, jitter=0.0)
    fail(breaker)

    def child() -> list[str]:
        seen = [breaker.get_state()]
        with pytest.raises(CircuitOpenError):
            breaker.acquire()
        clock.advance(30.0)
        breaker.execute(int)
        return [*seen, breaker.get_state()]

    assert ["open", "closed"] == in_child(child)
    assert "open" == breaker.get_state()


def test_fork_inside_a_call() -> None:
    """A call that forks ends twice, once in each process, and each counts it once."""
    breaker = CircuitBreaker()
    pid = os.getpid()

    def work() -> Any:
        return in_child(child) if os.getpid() == pid else None

    def child() -> list[int]:
        # Still inside the parent's call, as its copy: a use of the breaker in here is part of it.
        nested = breaker.acquire().is_nested
        breaker.settle(breaker.acquire(), breaker.classify(DOWN))
        return [nested, breaker.get_stats().failures]

    assert [True, 0] == breaker.execute(work)
    assert 1 == breaker.get_stats().successes


@pytest.fixture
def restless() -> Iterator[None]:
    """Switch threads often: more moments to fork in, and less waiting for one's turn."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(usual)


def test_fork_amid_busy_threads(restless: None) -> None:
    """Forked at any moment of four busy threads, each of 15 children has a breaker that works."""
    breaker = CircuitBreaker(failure_threshold=3, on_event=id)
    is_over = threading.Event()

    def be_busy() -> None:
        while not is_over.is_set():
            fail(breaker)
            with suppress(CircuitOpenError):
                breaker.execute(int)
            breaker.get_stats()
            breaker.reset()

    def child() -> list[Any]:
        breaker.reset()
        failures = breaker.get_stats().failures
        for _ in range(3):
            fail(breaker)
        stats = breaker.get_stats()
        return [stats.failures - failures, stats.state]

    threads = [threading.Thread(target=be_busy) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        reports = [in_child(child) for _ in range(15)]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert [[3, "open"]] * 15 == reports


# --- connections --------------------------------------------------------------------------------


class Backend(ThreadingHTTPServer):
    """Answers a query with what it asked for and the connection that it came on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.meeting = threading.Barrier(2)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """One connection to the backend."""

    protocol_version = "HTTP/1.1"
    server: Backend

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/meet":
            self.server.meeting.wait(PATIENCE)
        wanted = parse_qs(url.query).get("id", [""])[0].removeprefix("eq.")
        status = 503 if wanted == "broken" else 200
        body = json.dumps([{"id": wanted, "connection": self.client_address[1]}]).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def backend() -> Iterator[Backend]:
    """Give a server that keeps connections open."""
    with Backend() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_child_makes_connections_of_its_own(backend: Backend) -> None:
    """A client used before the fork works in both processes, each on connections of its own."""
    client = protect(Client.create(backend.url, KEY))

    def connection_for(wanted: str) -> int:
        [row] = client.table("t").select("*").eq("id", wanted).execute().data
        assert wanted == row["id"]
        return row["connection"]

    ours = connection_for("before")
    theirs = in_child(lambda: [connection_for("child"), connection_for("child again")])
    assert ours == connection_for("after")
    client.postgrest.session.close()
    assert theirs[0] == theirs[1] != ours


# --- gunicorn -----------------------------------------------------------------------------------

APP = """
import json, os, sys, threading, urllib.request
from supabase import create_client
from supabase_resilience import CircuitBreaker, CircuitOpenError, protect

breaker = CircuitBreaker(failure_threshold=1, reset_timeout=300.0)
client = protect(create_client(os.environ["BACKEND"], "sb_publishable_key"), breaker=breaker)
[AT_IMPORT] = client.table("t").select("*").execute().data
IMPORTED_BY = os.getpid()


def query(wanted):
    try:
        [row] = client.table("t").select("*").eq("id", wanted).execute().data
    except Exception as error:
        return {"error": type(error).__name__}
    return row


def app(environ, start_response):
    verb, _, wanted = environ["PATH_INFO"].strip("/").partition("/")
    if verb == "meet":
        urllib.request.urlopen(os.environ["BACKEND"] + "/meet").read()
    said = query(wanted) if wanted else {}
    facts = {"pid": os.getpid(), "imported_by": IMPORTED_BY, "at_import": AT_IMPORT["connection"]}
    body = json.dumps({**facts, **said, "state": breaker.get_state()}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


class Gunicorn:
    """A running gunicorn with two workers."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> dict[str, Any]:
        """What one of the workers answers."""
        with urllib.request.urlopen(self._url + path, timeout=PATIENCE) as answer:
            return json.load(answer)

    def from_both(self, wanted: str = "") -> list[dict[str, Any]]:
        """What each of the two workers answers: neither ends before the other has begun."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(self.get, [f"/meet/{wanted}"] * 2))


@contextmanager
def gunicorn(backend: Backend, directory: Path) -> Iterator[Gunicorn]:
    (directory / "shop.py").write_text(APP, encoding="utf-8")
    home = {"HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)}
    environment = {**os.environ, **home, "BACKEND": backend.url, "no_proxy": "*"}
    log = (directory / "log").open("wb")
    with log, socket.create_server(("127.0.0.1", 0)) as listening:
        bind = f"fd://{listening.fileno()}"
        options = ["--preload", "--workers=2", "--graceful-timeout=5", f"--bind={bind}"]
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options, "shop:app"],
            cwd=directory,
            env=environment,
            pass_fds=[listening.fileno()],
            stderr=log,
        )
        try:
            yield Gunicorn(listening.getsockname()[1])
        finally:
            server.terminate()
            assert 0 == server.wait(PATIENCE)


@pytest.fixture
def site(backend: Backend, tmp_path: Path) -> Iterator[Gunicorn]:
    """Give an app that makes its client and breaker, and a first query, as it is imported."""
    if importlib.util.find_spec("gunicorn") is None:
        pytest.skip("gunicorn is not installed")
    with gunicorn(backend, tmp_path) as running:
        yield running


def test_gunicorn_preload(site: Gunicorn) -> None:
    """Under `gunicorn --preload` each worker has its own connections and its own circuit."""
    workers = site.from_both("first")
    pids = {each["pid"] for each in workers}
    assert 2 == len(pids)
    assert 1 == len({each["imported_by"] for each in workers} - pids)
    assert ["first", "first"] == [each["id"] for each in workers]
    # Three processes, three connections: the parent's, and one of each worker.
    assert 3 == len({each[of] for each in workers for of in ("connection", "at_import")})

    wanted = [f"row-{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(site.get, (f"/query/{each}" for each in wanted)))
    assert wanted == [each["id"] for each in answers]
    assert {each["connection"] for each in answers} <= {each["connection"] for each in workers}

    tripped = site.get("/query/broken")
    assert ("APIError", "open") == (tripped["error"], tripped["state"])
    states = {each["pid"]: each["state"] for each in site.from_both()}
    assert states.pop(tripped["pid"]) == "open"
    assert ["closed"] == list(states.values())
    after = {each["pid"]: each.get("error") for each in site.from_both("second")}
    assert after.pop(tripped["pid"]) == "CircuitOpenError"
    assert [None] == list(after.values())
