"""The ASGI app: probes, JSON, metrics, the page and its events. It changes nothing."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from supabase_resilience._checks import check_callable, check_optional, check_text
from supabase_resilience.status import _page
from supabase_resilience.status._backlog import Backlog
from supabase_resilience.status._feed import Feed
from supabase_resilience.status._log import EventLog
from supabase_resilience.status._snapshot import Snapshot, take
from supabase_resilience.together import AsyncResilience, Resilience

__all__ = ["Auth", "Metrics", "status_app"]

Auth = Callable[[Request], bool | Awaitable[bool]]
Endpoint = Callable[[Request], Awaitable[Response]]
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Metrics(Protocol):
    """What `/metrics` needs of a `PrometheusHook`."""

    def observe(self, stats: Mapping[str, Any], /) -> None:
        """Take over the statistics of now, or what the queues hold."""

    def render(self) -> tuple[bytes, str]:
        """The text for Prometheus, and its content type."""
        ...


def status_app(
    resilience: Resilience | AsyncResilience,
    *,
    events: EventLog | None = None,
    metrics: Metrics | None = None,
    auth: Auth | None = None,
    title: str = "Status",
) -> Starlette:
    """An ASGI app that tells how the parts of `resilience` are: to run alone, or to mount.

    ```python
    app = FastAPI(lifespan=...)                         # starts and stops `resilience`
    app.mount("/status", status_app(resilience, events=log, metrics=prometheus, auth=is_staff))
    ```

    - `/livez`: 200 as long as this process can answer and the resilience's own thread or task
      runs, whatever happens to Supabase; 503 otherwise.
    - `/readyz`: 200 unless a part is `failing`, then 503; an open circuit is `degraded`, which is
      ready. `?part=queue:mails` asks for one part; 404 if there is none of that name.
    - `/`: a page for people, which renews itself (`/events`, server-sent events) and needs neither
      JavaScript nor a network. `/status.json` has the same for scripts; the README has its shape.
    - `/metrics`: for Prometheus, if `metrics`, a `PrometheusHook`, is given; else 404. It also has
      what the queues hold, as they answered before this scrape.

    `auth` is given each request (of Starlette) and says whether it may see anything; it may be
    async. 401 is what those get who may not. `/livez` and `/readyz` are not asked for it, as probes
    have no credentials; they tell names of parts and one word on each. Middleware of the app that
    it is mounted in guards it as well: whatever stands before the mount does.

    Nothing here waits for Supabase: all is from memory, but for what the queues hold. That is asked
    of Supabase every five seconds in the background, only while somebody looks. An
    `AsyncResilience` has to live on the event loop that runs this app. Only GET is answered.

    Raises `ValueError` or `TypeError`, naming the argument, for one that makes no sense.
    """
    if not isinstance(resilience, Resilience | AsyncResilience):
        raise TypeError(f"resilience must be a Resilience or AsyncResilience, got {resilience!r}")
    if events is not None and not isinstance(events, EventLog):
        raise TypeError(f"events must be an EventLog or None, got {events!r}")
    check_optional(check_callable, "auth", auth)
    check_text("title", title)
    return _App(resilience, events, metrics, auth, title).made()


class _App:
    """The answers to each path."""

    def __init__(
        self,
        resilience: Resilience | AsyncResilience,
        events: EventLog | None,
        metrics: Metrics | None,
        auth: Auth | None,
        title: str,
    ) -> None:
        self._resilience = resilience
        self._events = events
        self._metrics = metrics
        self._auth = auth
        self._title = title
        self._backlog = Backlog(resilience.parts)
        self._feed = Feed(self._take)

    def made(self) -> Starlette:
        """It as an app."""
        open_to_all: dict[str, Endpoint] = {"/livez": self.livez, "/readyz": self.readyz}
        guarded: dict[str, Endpoint] = {
            "/": self.page,
            "/events": self.stream,
            "/status.json": self.status,
            "/metrics": self.prometheus,
        }
        routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in open_to_all.items()]
        routes += [
            Route(path, self._guard(each), methods=["GET"]) for path, each in guarded.items()
        ]
        app = Starlette(routes=routes)
        app.state.resilience = self._resilience
        return app

    def _guard(self, endpoint: Endpoint) -> Endpoint:
        if self._auth is None:
            return endpoint

        async def guarded(request: Request) -> Response:
            if await self._may_see(request):
                return await endpoint(request)
            return PlainTextResponse("not for you\n", 401, _HEADERS)

        return guarded

    async def _may_see(self, request: Request) -> bool:
        assert self._auth is not None  # noqa: S101 - asked only if there is one
        answer = self._auth(request)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    def _take(self) -> Snapshot:
        return take(self._resilience, title=self._title, log=self._events, backlog=self._backlog)

    # --- for programs -----------------------------------------------------------------------------

    async def livez(self, _: Request) -> Response:
        """Whether a restart of this process would help."""
        if self._resilience.is_alive():
            return JSONResponse({"alive": True}, headers=_HEADERS)
        return JSONResponse({"alive": False}, 503, _HEADERS)

    async def readyz(self, request: Request) -> Response:
        """Whether all parts, or the one asked for, can do their work, or will by themselves."""
        health = self._resilience.health()
        parts = {part.part: part.status for part in health.parts}
        worst, asked = health.status, request.query_params.get("part")
        if asked is not None:
            if asked not in parts:
                return JSONResponse({"error": "no such part", "parts": [*parts]}, 404, _HEADERS)
            worst, parts = parts[asked], {asked: parts[asked]}
        status = 503 if worst == "failing" else 200
        return JSONResponse({"status": worst, "parts": parts}, status, _HEADERS)

    async def status(self, _: Request) -> Response:
        """All that is known."""
        return JSONResponse(self._take(), headers=_HEADERS)

    async def prometheus(self, _: Request) -> Response:
        """The metrics."""
        if self._metrics is None:
            said = "No metrics here: give status_app(metrics=PrometheusHook()).\n"
            return PlainTextResponse(said, 404, _HEADERS)
        self._metrics.observe(self._resilience.get_stats())
        self._metrics.observe(self._backlog.answers())
        body, content_type = self._metrics.render()
        return Response(body, headers={**_HEADERS, "Content-Type": content_type})

    # --- for people -------------------------------------------------------------------------------

    async def page(self, _: Request) -> Response:
        """The page as it is now."""
        view = self._feed.look()
        text = _page.document(
            view.snapshot,
            view.content,
            version=view.version,
            has_metrics=self._metrics is not None,
        )
        policy = {"Content-Security-Policy": _page.content_security_policy()}
        return Response(text, headers={**_HEADERS, **policy}, media_type="text/html")

    async def stream(self, request: Request) -> Response:
        """What is new on the page, as it happens."""
        headers = {**_HEADERS, "X-Accel-Buffering": "no"}  # nginx would keep it back
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        seen = request.headers.get("last-event-id") or request.query_params.get("seen")
        return StreamingResponse(
            self._feed.stream(seen), headers=headers, media_type="text/event-stream"
        )
