"""What a handler depends on besides Supabase: a small HTTP server that can be down, or hold calls.

Down means that nobody listens: connections are refused, as when a partner's service is gone. A call
to `/hold/…` is answered only when it is let go, so that a handler takes as long as a test wants.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Dependency:
    """Listens on a free port of loopback, and on the same one again after an outage."""

    def __init__(self, delay: float = 0.0) -> None:
        self._delay = delay
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._changed = threading.Condition()
        # Guarded by _changed.
        self._held: set[str] = set()
        self._let_go: set[str] = set()
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_up(self) -> bool:
        return self._server is not None

    def up(self) -> None:
        if self._server is None:
            self._server = _Server(("127.0.0.1", self._port), _handler_of(self))
            self._port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def wait_until_held(self, who: str, seconds: float = 60.0) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: who in self._held, seconds):
                raise RuntimeError(f"{who} has not come within {seconds:g} s")

    def let_go(self, who: str) -> None:
        with self._changed:
            self._let_go.add(who)
            self._changed.notify_all()

    def answer(self, path: str) -> None:
        """Returns when the call may be answered."""
        _, kind, *rest = path.split("/")
        if kind != "hold":
            threading.Event().wait(self._delay)
            return
        who = rest[0]
        with self._changed:
            self._held.add(who)
            self._changed.notify_all()
            self._changed.wait_for(lambda: who in self._let_go, 300.0)


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A worker that is killed leaves its connection, which is what this is about."""


def _handler_of(dependency: Dependency) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            dependency.answer(urlsplit(self.path).path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    return Handler
