"""What can be seen through the API, with GET requests only: PostgREST runs them read-only.

A function that would write is called by GET, too: the database refuses to run it (25006), which
tells that it is there. Of rows only numbers are kept.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from supabase_resilience.doctor._facts import ApiFacts, Installed, TableAnswer, Where
from supabase_resilience.doctor._findings import DoctorError
from supabase_resilience.doctor._keys import read_key
from supabase_resilience.doctor._subjects import Subjects, TableUse

__all__ = ["look_at_api"]

Clock = Callable[[], float]
_PLAIN = re.compile(r"\w+", re.ASCII)
_READ_ONLY = "25006"  # it is there, and would write
_ABSENT = {"PGRST202", "PGRST106"}
_QUEUE_CODES: Mapping[str, Where] = {
    _READ_ONLY: "there",
    "42P01": "missing",
    "PGRST106": "not_exposed",
    "PGRST202": "no_function",
    "3F000": "no_pgmq",
    "42883": "no_pgmq",
    "42501": "forbidden",
}


class _Answer(NamedTuple):
    status: int
    code: str | None
    text: str
    body: Any

    @property
    def refusal(self) -> str | None:
        """The code of an answer that is none."""
        return None if self.status < 300 else self.code or f"HTTP {self.status}"

    @property
    def is_refused(self) -> bool:
        """Whether the key itself was: a role without a right also gets 401."""
        return self.status == 401 and self.code != "42501"


class _Api:
    """One project, asked by GET."""

    def __init__(self, session: httpx.Client, url: str, key: str, clock: Clock) -> None:
        self._session = session
        self._base = url.rstrip("/") + "/rest/v1"
        self._headers = {"apikey": key, "Authorization": f"Bearer {key}"}
        self._clock = clock
        self.skew: float | None = None
        self.server: str | None = None

    def get(self, path: str, schema: str = "public", **parameters: Any) -> _Answer:
        """Raises `DoctorError` when nobody answers for the project."""
        sent = self._clock()
        try:
            response = self._session.get(
                self._base + path,
                params=parameters,
                headers={**self._headers, "Accept-Profile": schema},
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DoctorError(
                f"the API did not answer ({type(error).__name__}): check the URL and the network"
            ) from None
        self._note(response, sent)
        return _read(response)

    def _note(self, response: httpx.Response, sent: float) -> None:
        if self.skew is None:
            self.skew = _skew(response.headers.get("date"), sent, self._clock())
        server = response.headers.get("server", "")
        if server.startswith("postgrest/"):
            self.server = server.removeprefix("postgrest/")


def _read(response: httpx.Response) -> _Answer:
    try:
        body = response.json()
    except ValueError:
        body = None
    said = body if isinstance(body, dict) and response.status_code >= 300 else {}
    code = said.get("code")
    code = code if isinstance(code, str) else None
    is_outage = response.status_code >= 500 and (code is None or code.startswith("PGRST0"))
    if is_outage:
        raise DoctorError(
            f"the API is out of order (HTTP {response.status_code}{f', {code}' if code else ''}): "
            "look at the project's status in the dashboard, then try again"
        )
    return _Answer(response.status_code, code, str(said.get("message", "")), body)


def _skew(date: str | None, sent: float, received: float) -> float | None:
    """How far ahead our clock is at least: a date has whole seconds, an answer takes a while."""
    try:
        told = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    least, most = sent - (told + 1), received - told
    return least if least > 0 else min(most, 0.0)


def look_at_api(
    subjects: Subjects, *, url: str, key: str, timeout: float, clock: Clock
) -> ApiFacts:
    """Look at everything. Raises `DoctorError` when nobody answers."""
    known = read_key(key, url)
    with httpx.Client(timeout=timeout) as session:
        api = _Api(session, url, key, clock)
        queues = list(dict.fromkeys(queue for use in subjects.queues for queue in use.queues))
        probe = api.get("/rpc/supabase_resilience_queue_check", queues=_array(queues))
        now = clock()
        if probe.is_refused:
            return ApiFacts(key=known, is_refused=True, now=now, skew=api.skew)
        has_cursor = any(use.has_table_cursor for use in subjects.tables)
        has_lease = any(use.lease for use in subjects.tables)
        return ApiFacts(
            key=known,
            now=now,
            skew=api.skew,
            rest_version=_version(api),
            tables={use: _table(api, use) for use in subjects.tables},
            queue_version=probe.body.get("version") if probe.refusal is None else None,
            queue_migration=_installed(probe),
            queues=_queues(api, probe, queues),
            cursors=_installed(_load_cursor(api)) if has_cursor else None,
            leases=_installed(_holds(api)) if has_lease else None,
        )


def _version(api: _Api) -> str | None:
    answer = api.get("/")
    body = answer.body if answer.refusal is None and isinstance(answer.body, dict) else {}
    version = body.get("info", {}).get("version")
    return api.server or (version if isinstance(version, str) else None)


def _load_cursor(api: _Api) -> _Answer:
    return api.get("/rpc/supabase_resilience_load_cursor", p_name="")


def _holds(api: _Api) -> _Answer:
    return api.get("/rpc/supabase_resilience_lease_holds", p_name="", p_token="0")  # noqa: S106 - a lease's


def _installed(answer: _Answer) -> Installed:
    if answer.refusal is None or answer.code == _READ_ONLY:
        return "yes"
    if answer.code in _ABSENT:
        return "no"
    return "forbidden" if answer.code == "42501" else None


def _array(names: Iterable[str]) -> str:
    """PostgreSQL's array of text."""
    escaped = (name.replace("\\", "\\\\").replace('"', '\\"') for name in names)
    return "{" + ",".join(f'"{name}"' for name in escaped) + "}"


# --- queues ---------------------------------------------------------------------------------------


def _queues(api: _Api, probe: _Answer, queues: Iterable[str]) -> dict[str, Where]:
    if probe.refusal is None:
        found = probe.body["queues"]
        return {name: "there" if found[name]["exists"] else "missing" for name in queues}
    return {name: _queue(api, name) for name in queues}


def _queue(api: _Api, name: str) -> Where:
    answer = api.get("/rpc/read", "pgmq_public", queue_name=name, sleep_seconds=0, n=0)
    if answer.refusal is None:
        return "there"
    return _QUEUE_CODES.get(answer.code or "", "unseen")


# --- tables ---------------------------------------------------------------------------------------


def _table(api: _Api, use: TableUse) -> TableAnswer:
    wanted = [*use.key, *([use.column] if use.column else [])]
    answer = _select(api, use, wanted)
    horizon = _horizon(api, use) if use.level in {"versioned", "change_log"} else None
    if answer.code == "42703":
        missing = (name for name in wanted if _select(api, use, [name]).code == "42703")
        return TableAnswer(missing=tuple(missing), horizon=horizon)
    if answer.refusal is not None:
        return TableAnswer(answer.refusal, answer.text, horizon=horizon)
    return TableAnswer(cap=_cap(api, use), horizon=horizon)


def _select(
    api: _Api, use: TableUse, names: Iterable[str], *, limit: int = 0, offset: int = 0
) -> _Answer:
    select = ",".join(map(_column, names)) or "*"
    path = f"/{quote(use.table, safe='')}"
    return api.get(path, use.schema, select=select, limit=limit, offset=offset)


def _column(name: str) -> str:
    if _PLAIN.fullmatch(name):
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _cap(api: _Api, use: TableUse) -> int | None:
    """How many rows come at most, if that is less than a page and the table has more."""
    if use.page is None or not use.key:
        return None
    page = _select(api, use, use.key[:1], limit=use.page)
    count = len(page.body) if page.refusal is None else use.page
    if count >= use.page:
        return None
    more = _select(api, use, use.key[:1], limit=1, offset=count)
    return count if more.refusal is None and more.body else None


def _horizon(api: _Api, use: TableUse) -> Mapping[str, Any] | str:
    answer = api.get("/rpc/supabase_resilience_horizon", p_schema=use.schema, p_table=use.table)
    if answer.refusal is not None:
        return answer.refusal
    told: dict[str, Any] = answer.body
    return told
