"""Who may connect: path, protocol version, key and limits, answered in HTTP before the handshake.

Statuses, texts and headers are the real server's; so is the pause before a refusal.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from supabase_resilience.local.realtime._limits import Limits
from supabase_resilience.local.realtime._phoenix import VERSIONS
from supabase_resilience.local.realtime._settings import Settings
from supabase_resilience.local.realtime._tokens import Keyring, TokenError

_PATHS: Final = frozenset({"/realtime/v1/websocket", "/socket/websocket"})


class Gate:
    """Stands before the handshake."""

    def __init__(self, keyring: Keyring, limits: Limits, settings: Settings) -> None:
        self._keyring = keyring
        self._limits = limits
        self._settings = settings

    async def refusal(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the answer to a client that may not connect; None lets it in."""
        if urlsplit(request.path).path not in _PATHS:
            return _response(connection, HTTPStatus.NOT_FOUND, "Not Found", "text/html")
        if version_of(request) not in VERSIONS:
            return connection.respond(HTTPStatus.FORBIDDEN, "")
        refusal = self._refusal(connection, token_of(request))
        if refusal is not None:
            await asyncio.sleep(self._settings.connect_error_delay)
        return refusal

    def _refusal(self, connection: ServerConnection, token: str) -> Response | None:
        problem = self._problem_of(token)
        if problem is not None:
            return _error(connection, HTTPStatus.UNAUTHORIZED, problem)
        limit = self._limits.reached_by_connecting()
        if limit is not None:
            return _error(connection, HTTPStatus.TOO_MANY_REQUESTS, limit)
        return None

    def _problem_of(self, token: str) -> str | None:
        if not token:
            return "API key is missing"
        try:
            self._keyring.claims(token)
        except TokenError as error:
            return error.connecting
        return None


def token_of(request: Request | None) -> str:
    """Return the key that a client connects with; empty if it has none."""
    header: Any = None if request is None else request.headers.get("x-api-key")
    return str(header or _parameter(request, "apikey", ""))


def version_of(request: Request | None) -> str:
    """Return the version of the protocol that a client asks for."""
    return _parameter(request, "vsn", VERSIONS[0])


def _parameter(request: Request | None, name: str, default: str) -> str:
    query = parse_qs(urlsplit("" if request is None else request.path).query)
    return query.get(name, [default])[0]


def _error(connection: ServerConnection, status: HTTPStatus, reason: str) -> Response:
    return _response(connection, status, json.dumps({"error": reason}), "application/json")


def _response(
    connection: ServerConnection, status: HTTPStatus, body: str, content_type: str
) -> Response:
    response = connection.respond(status, body)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = f"{content_type}; charset=utf-8"
    return response
