"""The PostgreSQL server of the local stack, started, stopped and killed at will.

The programs are used directly rather than through `pg_ctl`, so that the server is a child of this
process: its end is noticed at once and its signals go to the right place. What the server promises
on disk is thrown away with the stack, hence no fsync.
"""

import random
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from supabase_resilience.local._binaries import Binaries, find_binaries
from supabase_resilience.local._child import last_lines
from supabase_resilience.local._errors import LocalSupabaseError
from supabase_resilience.local._extensions import FIRST_VERSION, extension_path
from supabase_resilience.local._guardian import kill_with_descendants, remove_shared_memory

SUPERUSER = "supabase_admin"
OWNER = "postgres"  # the role that owns the user's objects; not a superuser, as on Supabase
START_TIMEOUT = 60.0  # seconds
PORT_ATTEMPTS = 10

# synchronous_commit stays on: without it logical decoding waits for the WAL writer, 0.2 s instead
# of 2 ms. Dynamic shared memory in files of the data directory leaves nothing after a crash.
_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
wal_level = logical
max_replication_slots = 20
max_wal_senders = 20
max_connections = 100
shared_buffers = 64MB
dynamic_shared_memory_type = mmap
synchronous_commit = on
fsync = off
full_page_writes = off
timezone = 'UTC'
log_timezone = 'UTC'
"""


class Postgres(Protocol):
    """The database server of a stack, and what can be done to it."""

    @property
    def running(self) -> bool:
        """Whether the server is up."""
        ...

    @property
    def admin_dsn(self) -> str:
        """How the superuser connects."""
        ...

    @property
    def dsn(self) -> str:
        """How the owner of the user's objects connects."""
        ...

    def connect(self, role: str = SUPERUSER) -> psycopg.Connection[Any]:
        """Open a connection in autocommit mode, as the superuser or as `postgres`."""
        ...

    def start(self) -> None:
        """Start the server; returns when it accepts connections. Does nothing when it is up."""
        ...

    def stop(self) -> None:
        """Stop the server in order: transactions are rolled back, clients disconnected."""
        ...

    def kill(self) -> None:
        """End the server's processes with SIGKILL, as a crash would; `start` then recovers."""
        ...

    def shut_down(self) -> None:
        """End the server for good, or give back what was borrowed from it."""
        ...


class ManagedPostgres:
    """A server of our own, in a directory and on a loopback port that it keeps over restarts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / "data"
        self._log = directory / "postgres.log"
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._binaries = self._make_cluster()
        self._port = self._start_on_a_free_port()

    @property
    def running(self) -> bool:
        """Whether the server is up."""
        return self._process is not None and self._process.poll() is None

    @property
    def admin_dsn(self) -> str:
        """How the superuser connects."""
        return _dsn(SUPERUSER, self._port)

    @property
    def dsn(self) -> str:
        """How the owner of the user's objects connects."""
        return _dsn(OWNER, self._port)

    def connect(self, role: str = SUPERUSER) -> psycopg.Connection[Any]:
        """Open a connection in autocommit mode, as the superuser or as `postgres`."""
        return psycopg.connect(_dsn(role, self._port), autocommit=True)

    def start(self) -> None:
        """Start the server; returns when it accepts connections. Does nothing when it is up.

        Raises `LocalSupabaseError` with its last words when it does not come up.
        """
        with self._lock:
            if not self.running:
                self._launch(self._port)

    def stop(self) -> None:
        """Stop the server in order: transactions are rolled back, clients disconnected."""
        self._end(signal.SIGINT, timeout=10)

    def kill(self) -> None:
        """End the server's processes with SIGKILL, as a crash would; `start` then recovers."""
        with self._lock:
            if self._process is not None and self.running:
                kill_with_descendants(self._process.pid)
                self._process.wait()
                remove_shared_memory(self._data)

    def shut_down(self) -> None:
        """End the server for good; nothing is written back, for its directory goes, too."""
        self._end(signal.SIGQUIT, timeout=5)

    def _end(self, number: signal.Signals, *, timeout: float) -> None:
        with self._lock:
            for attempt in (number, signal.SIGQUIT):
                if self._process is None or not self.running:
                    return
                self._process.send_signal(attempt)
                try:
                    self._process.wait(timeout)
                except subprocess.TimeoutExpired:
                    continue
            self.kill()

    def _make_cluster(self) -> Binaries:
        self._data.mkdir(mode=0o700)
        binaries = find_binaries(self._data, self._directory)
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        if binaries.version >= 17:
            # Older ones know Unicode only through the system's locales, which differ.
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        binaries.run("initdb", "-D", self._data, "-U", SUPERUSER, *options, cwd=self._data)
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write(_SETTINGS + self._own_settings(binaries))
        return binaries

    def _own_settings(self, binaries: Binaries) -> str:
        # Its name stands in every process title; the guardian recognises the stack by it.
        settings = f"cluster_name = '{self._directory.name}'\n"
        if binaries.version >= FIRST_VERSION and (binaries.directory / "pg_config").exists():
            share = Path(binaries.run("pg_config", "--sharedir", cwd=self._data))
            path = extension_path(self._directory / "extensions", share)
            settings += f"extension_control_path = '{path}'\n"
        return settings

    def _start_on_a_free_port(self) -> int:
        for _ in range(PORT_ATTEMPTS):
            port = free_port()
            try:
                self._launch(port)
            except _PortTakenError:
                continue
            return port
        raise LocalSupabaseError(
            "PostgreSQL finds no free port on 127.0.0.1; see what listens there"
        )

    def _launch(self, port: int) -> None:
        with self._log.open("wb") as log:
            self._process = self._binaries.start(
                "postgres", "-D", self._data, "-p", str(port), cwd=self._data, output=log
            )
        try:
            self._wait_until_ready(_dsn(SUPERUSER, port))
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self, dsn: str) -> None:
        end = time.monotonic() + START_TIMEOUT
        while not _accepts(dsn):
            if not self.running:
                raise _why(last_lines(self._log))
            if time.monotonic() > end:
                raise LocalSupabaseError(
                    f"PostgreSQL accepts no connections after {START_TIMEOUT:g} s"
                    f"{last_lines(self._log)}"
                )
            time.sleep(0.01)


class _PortTakenError(LocalSupabaseError):
    """Somebody else listens on the port that we chose."""


def _why(last_words: str) -> LocalSupabaseError:
    if "could not bind" in last_words:
        return _PortTakenError(f"PostgreSQL's port is taken by another program{last_words}")
    return LocalSupabaseError(f"PostgreSQL did not start{last_words}")


def _dsn(role: str, port: int) -> str:
    return make_conninfo(
        host="127.0.0.1", port=port, user=role, dbname="postgres", sslmode="disable"
    )


def _accepts(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def free_port() -> int:
    """Return a loopback port that nobody listens on.

    It is outside the range from which outgoing connections take theirs: a client that keeps trying
    a port of that range may end up connected to itself, and then a server that was stopped cannot
    have its port back.
    """
    for _ in range(100):
        port = random.randrange(10_240, 32_000)  # noqa: S311  (no secret)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise LocalSupabaseError("there is no free port on 127.0.0.1; see what listens there")


def as_url(dsn: str) -> str:
    """Return a DSN as the kind of URL that clients other than libpq understand.

    Raises `LocalSupabaseError` for a DSN that names a socket's directory.
    """
    given = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    parts = {"host": "127.0.0.1", "port": "5432", "user": "", "dbname": ""} | given
    if parts["host"].startswith("/"):
        raise LocalSupabaseError(f"connect by TCP, not by the socket in {parts['host']}")
    login = quote(parts["user"], safe="")
    if "password" in parts:
        login += ":" + quote(parts["password"], safe="")
    ssl = f"?sslmode={parts['sslmode']}" if "sslmode" in parts else ""
    database = quote(parts["dbname"], safe="")
    return f"postgres://{login}@{parts['host']}:{parts['port']}/{database}{ssl}"
