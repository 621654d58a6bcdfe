"""The page: a verdict, then the parts by kind, then what failed and what happened.

All of it is rendered here. The script on the page only puts newer renderings in place and counts
ages, so the page is whole without it.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from supabase_resilience.status._cards import Values, anchor, card, icon, short
from supabase_resilience.status._html import Html, join, tag
from supabase_resilience.status._moments import Moments, Steady
from supabase_resilience.status._snapshot import Snapshot
from supabase_resilience.status._words import count, plural

__all__ = [
    "content",
    "content_security_policy",
    "document",
    "favicon",
    "headline",
    "status",
    "verdict",
    "window_title",
]

_HEADINGS = {
    "breaker": "Circuit breakers",
    "queue": "Queues",
    "listener": "Listeners",
    "verification": "Verifications",
}
_EVENTS = 50
_FAILURES = 20
_SEVERITIES = {"warning": "degraded", "error": "failing", "critical": "failing"}
_RELOAD = 15
_COMMANDS = (
    ("Dead letters of a queue", "python -m supabase_resilience queue NAME --dead"),
    ("Send one, or all, back to work", "python -m supabase_resilience queue NAME --replay ID"),
    ("One pass over a table now", "python -m supabase_resilience verify MODULE:NAME --once"),
    ("What is set up wrong", "python -m supabase_resilience doctor"),
)


# --- words ----------------------------------------------------------------------------------------


def verdict(snapshot: Snapshot) -> str:
    """How it all is, in one sentence."""
    parts = snapshot["health"]["parts"]
    bad = [
        (word, sum(part["status"] == word for part in parts)) for word in ("failing", "degraded")
    ]
    said = [
        f"{count(number)} of {plural(len(parts), 'part')} {_is(number)} {word}"
        for word, number in bad
        if number
    ]
    if len(said) > 1:
        said[1] = f"{count(bad[1][1])} {_is(bad[1][1])} degraded"
    if not said:
        said = [_all_well(len(parts))]
    firing = len(snapshot["alerts_firing"])
    return ", ".join([*said, f"{plural(firing, 'alert')} {_is(firing)} firing"] if firing else said)


def _all_well(number: int) -> str:
    if number == 0:
        return "There is no part to watch"
    return "The one part works" if number == 1 else f"All {count(number)} parts work"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def status(snapshot: Snapshot) -> str:
    """The worst of the parts; an alert that fires is worth a look, too."""
    worst: str = snapshot["health"]["status"]
    return "degraded" if worst == "ok" and snapshot["alerts_firing"] else worst


def headline(snapshot: Snapshot) -> str:
    """The verdict and whom it concerns, to be read aloud when it changes."""
    bad = [f"{part['part']} {part['status']}" for part in _bad(snapshot)]
    return ": ".join([verdict(snapshot), ", ".join(bad)] if bad else [verdict(snapshot)])


def window_title(snapshot: Snapshot) -> str:
    """Of the browser's tab."""
    return f"{verdict(snapshot)} · {snapshot['title']}"


def _bad(snapshot: Snapshot) -> list[Values]:
    parts = [part for part in snapshot["health"]["parts"] if part["status"] != "ok"]
    return sorted(parts, key=lambda part: part["status"] != "failing")


# --- the part that changes ------------------------------------------------------------------------


def content(snapshot: Snapshot, steady: Steady) -> Html:
    """What is inside of `main`."""
    moments = Moments(snapshot["at"], steady)
    return join(
        _banner(snapshot, moments),
        *(_group(snapshot, kind, moments) for kind in _HEADINGS),
        _failures(snapshot, moments),
        _events(snapshot, moments),
    )


def _banner(snapshot: Snapshot, moments: Moments) -> Html:
    worst = status(snapshot)
    title = tag("h1", icon(worst), tag("span", verdict(snapshot)))
    alerts = [tag("li", tag("strong", "Alert: "), name) for name in snapshot["alerts_firing"]]
    bad = [*alerts, *(_bad_part(part, moments) for part in _bad(snapshot))]
    idle = (
        None
        if snapshot["is_active"]
        else tag("p", "The parts are not started, or have been stopped.")
    )
    listed = tag("ul", *bad) if bad else None
    return tag("section", title, idle, listed, class_=f"banner {worst}", aria_label="Verdict")


def _bad_part(part: Values, moments: Moments) -> Html:
    link = tag("a", f"{part['kind']} {short(part['part'])}", href=f"#{anchor(part['part'])}")
    since = tag("span", "for ", moments.since(part["since"]), class_="since")
    return tag("li", link, f" is {part['status']}: {part['reason']} ", since)


def _group(snapshot: Snapshot, kind: str, moments: Moments) -> Html | None:
    parts = [part for part in snapshot["health"]["parts"] if part["kind"] == kind]
    if not parts:
        return None
    title = tag("h2", _HEADINGS[kind], id=f"{kind}s")
    cards = [card(snapshot, part, moments) for part in parts]
    return tag("section", title, *cards, aria_labelledby=f"{kind}s", class_="group")


def _failures(snapshot: Snapshot, moments: Moments) -> Html | None:
    failures = snapshot["failures"]
    if not failures:
        return None
    title = tag("h2", "What failed, and why", id="failures")
    listed = [_failure(each, moments) for each in failures[:_FAILURES]]
    body = tag("div", tag("ul", *listed, class_="lines"), class_="card")
    return tag("section", title, body, aria_labelledby="failures")


def _failure(failure: Values, moments: Moments) -> Html:
    times = f"{plural(failure['count'], 'time')}, last "
    last = tag("span", times, moments.since(failure["last"]), " ago", class_="facts")
    what = f" {_words(failure['name'])}: {failure['why']} "
    return tag("li", tag("strong", failure["part"]), what, last)


def _events(snapshot: Snapshot, moments: Moments) -> Html | None:
    events = snapshot["events"]
    if events is None:
        return None
    title = tag("h2", "What happened lately", id="events")
    listed = [_event(each, moments) for each in events[:_EVENTS]]
    body = tag("ol", *listed, class_="lines") if listed else tag("p", "Nothing yet.")
    note = tag("p", "Newest first; times are UTC.", class_="note")
    return tag("section", title, tag("div", note, body, class_="card"), aria_labelledby="events")


def _event(event: Values, moments: Moments) -> Html:
    kind = _SEVERITIES.get(event["severity"])
    told = ", ".join(
        f"{key}: {_fact(value)}" for key, value in event["facts"].items() if value is not None
    )
    return tag(
        "li",
        moments.clock(event["at"]),
        " ",
        tag(
            "span", icon(kind) if kind else None, event["severity"], class_=f"severity {kind or ''}"
        ),
        " ",
        tag("strong", event["name"].replace(".", " ").replace("_", " ")),
        " ",
        tag("span", told, class_="facts"),
    )


def _words(name: str) -> str:
    return name.replace(".", " ").replace("_", " ")


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


# --- the page around it ---------------------------------------------------------------------------


def document(snapshot: Snapshot, inside: Html, *, version: str, has_metrics: bool) -> str:
    """The whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", window_title(snapshot)),
        tag("link", rel="icon", id="icon", href=favicon(status(snapshot))),
        tag("noscript", tag("meta", http_equiv="refresh", content=_RELOAD)),
        tag("style", Html(_file("page.css"))),
    )
    body = tag(
        "body",
        tag("a", "Skip to the verdict", href="#main", class_="skip"),
        _top(snapshot),
        tag(
            "main",
            inside,
            id="main",
            tabindex=-1,
            data_version=version,
            data_said=headline(snapshot),
            data_at=f"{snapshot['at']:.1f}",
        ),
        _bottom(has_metrics=has_metrics),
        tag("p", id="news", role="status", class_="unseen"),
        tag("script", Html(_file("page.js"))),
    )
    return f'<!doctype html><html lang="en">{head}{body}</html>'


def _top(snapshot: Snapshot) -> Html:
    moment = Moments(snapshot["at"], Steady()).clock(snapshot["at"])
    still = tag(
        "span", "As of ", moment, f" UTC; reloads every {_RELOAD} s", id="live", class_="still"
    )
    return tag("header", tag("p", snapshot["title"], class_="title"), still, class_="top")


def _bottom(*, has_metrics: bool) -> Html:
    commands = [join(tag("dt", what), tag("dd", tag("code", how))) for what, how in _COMMANDS]
    links = [("JSON", "status.json"), ("ready?", "readyz"), ("alive?", "livez")]
    links += [("metrics", "metrics")] if has_metrics else []
    return tag(
        "footer",
        tag("h2", "To do something about it", id="commands"),
        tag("p", "This page only shows. What changes anything is a command:"),
        tag("dl", *commands, class_="commands"),
        tag("nav", *(tag("a", text, href=to) for text, to in links), aria_label="For programs"),
    )


def favicon(status: str) -> str:
    """A picture of the status, as a URL that needs no network."""
    colour = {"ok": "1a7f4b", "degraded": "b26a00", "failing": "c5221f"}[status]
    image = str(icon(status)).replace(
        "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" fill="#{colour}" '
    )
    return f"data:image/svg+xml;base64,{base64.b64encode(image.encode()).decode()}"


@cache
def _file(name: str) -> str:
    return (files(__package__ or "") / name).read_text(encoding="utf-8")


@cache
def content_security_policy() -> str:
    """The page's own style and script by their hashes, its own events, and nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash('page.css')}",
            f"script-src {_hash('page.js')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash(name: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(_file(name).encode()).digest()).decode()}'"
