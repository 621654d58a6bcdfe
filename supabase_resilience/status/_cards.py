"""A card for each part: how it is, since when, and the few numbers that tell how it is doing."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from supabase_resilience.status._html import Html, join, tag
from supabase_resilience.status._moments import Moments
from supabase_resilience.status._snapshot import Snapshot
from supabase_resilience.status._words import count, duration, plural, precise

__all__ = ["anchor", "badge", "card", "short", "table"]

Values = Mapping[str, Any]
Facts = list[tuple[str, str | None]]
_ICONS = {
    "ok": "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm3.6 5.2L7.2 11 4.4 8.2l1-1 1.8 1.8 3.3-3.8Z",
    "degraded": "M8 1 .6 14.5h14.8ZM7.2 6h1.6v4.2H7.2Zm0 5.3h1.6v1.6H7.2Z",
    "failing": "M5.1 1 1 5.1v5.8L5.1 15h5.8l4.1-4.1V5.1L10.9 1Zm.7 3.7L8 6.9l2.2-2.2 1.1 1.1L9.1 8"
    "l2.2 2.2-1.1 1.1L8 9.1l-2.2 2.2-1.1-1.1L6.9 8 4.7 5.8Z",
}


def card(snapshot: Snapshot, part: Values, moments: Moments) -> Html:
    """The card of a part of `health`."""
    name, status, kind = part["part"], part["status"], part["kind"]
    stats = snapshot["stats"][name]
    facts, more = _KINDS[kind](snapshot, name, stats, moments)
    title = f"{anchor(name)}-title"
    return tag(
        "article",
        tag("header", tag("h3", short(name), id=title), badge(status), _state(kind, stats)),
        _reason(part, moments),
        tag("dl", *(_fact(label, value) for label, value in facts)),
        more,
        id=anchor(name),
        class_=f"card {status}",
        aria_labelledby=title,
    )


def anchor(part: str) -> str:
    """The id of a part's card."""
    return f"part-{hashlib.blake2s(part.encode(), digest_size=6).hexdigest()}"


def short(part: str) -> str:
    """A part's name without its kind, which the heading above it says."""
    return part.partition(":")[2] or part


def badge(status: str) -> Html:
    """The status as an icon and a word."""
    return tag("span", icon(status), status, class_=f"badge {status}")


def icon(status: str) -> Html:
    """A picture of a status, for those who see it."""
    path = tag("path", d=_ICONS[status])
    return tag("svg", path, viewBox="0 0 16 16", aria_hidden="true", focusable="false")


def table(caption: str, head: list[str], rows: list[list[str]], *, numbers_from: int = 99) -> Html:
    """A table that can be scrolled by itself, with the keys, too; numbers are on the right."""
    columns = [
        tag("th", text, scope="col", class_=_of_column(i, numbers_from))
        for i, text in enumerate(head)
    ]
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(
                tag("td", cell, class_=_of_column(i, numbers_from))
                for i, cell in enumerate(row[1:], 1)
            ),
        )
        for row in rows
    ]
    made = tag(
        "table", tag("caption", caption), tag("thead", tag("tr", *columns)), tag("tbody", *body)
    )
    return tag("div", made, class_="wide", role="region", aria_label=caption, tabindex=0)


def _of_column(index: int, numbers_from: int) -> str | None:
    return "number" if index >= numbers_from else None


def _state(kind: str, stats: Values) -> Html | None:
    state = stats["state"].replace("_", " ")
    if kind == "breaker" or state not in {"running", "live", "waiting"}:
        return tag("span", state, class_="state")
    return None


def _reason(part: Values, moments: Moments) -> Html | None:
    if part["status"] == "ok":
        return None
    for_ = tag("span", "for ", moments.since(part["since"]), class_="since")
    return tag("p", part["reason"] or part["status"], " ", for_, class_="reason")


def _fact(label: str, value: str | None) -> Html:
    return tag("div", tag("dt", label), tag("dd", "unknown" if value is None else value))


def _of_breaker(_: Snapshot, name: str, stats: Values, moments: Moments) -> tuple[Facts, None]:
    state = stats["state"].replace("_", " ").capitalize()
    facts: Facts = [
        (f"{state} for", moments.ago(f"{name} state", stats["seconds_in_state"])),
        ("Calls answered", count(stats["successes"])),
        ("Failed", count(stats["failures"] + stats["throttled"] + stats["blocked"])),
        ("Refused", count(stats["refused"])),
        ("Retries", count(stats["retries"])),
        ("Times opened", count(stats["opened"])),
    ]
    if stats["retry_after"] is not None:
        facts.insert(1, ("Tries again in", moments.left(f"{name} retry", stats["retry_after"])))
    return facts, None


def _of_queue(
    snapshot: Snapshot, name: str, stats: Values, moments: Moments
) -> tuple[Facts, Html | None]:
    asked = snapshot["queues"].get(name) or {}
    dead = asked.get("dead")
    # What it said before it could not be asked any more may be far from true.
    now: Values = {} if asked.get("failure") else asked
    facts: Facts = [
        ("Oldest job waits", _oldest(now)),
        ("Ready", _known(now.get("ready"))),
        ("Delayed or in hand", _known(now.get("delayed"))),
        ("Dead letters", count(stats["dead"]) if dead is None else count(dead)),
        ("In hand here", count(stats["in_flight"])),
        ("Done here", count(stats["succeeded"])),
        ("Failed attempts", count(stats["failed"])),
        ("Given back in outages", count(stats["postponed"])),
        ("Wait, 95 %", _precise(stats["wait_p95"])),
        ("Run, 95 %", _precise(stats["run_p95"])),
    ]
    letters = (
        tag("a", "How to replay dead letters", href="#commands") if dead or stats["dead"] else None
    )
    return facts, join(
        tag("p", *_asked(asked, moments), class_="note"),
        tag("p", letters, class_="note") if letters else None,
    )


def _oldest(asked: Values) -> str | None:
    if asked.get("ready") == 0:
        return "none waits"
    age = asked.get("oldest_age")
    return None if age is None else duration(age)


def _asked(asked: Values, moments: Moments) -> list[str]:
    said = "" if asked.get("at") is None else moments.since(asked["at"])
    if asked.get("failure"):
        return [
            "The queue cannot be asked: ",
            asked["failure"],
            *((". Last answer ", said, " ago.") if said else "."),
        ]
    if not said:
        return ["The queue is being asked."]
    if asked.get("ready") is None:
        return ["The queue tells more with the migration of ", tag("code", "sql queue"), "."]
    return ["Waiting jobs as the queue told ", said, " ago."]


def _of_listener(
    _: Snapshot, name: str, stats: Values, moments: Moments
) -> tuple[Facts, Html | None]:
    facts: Facts = [
        ("Last live change", _ago(moments.ago(f"{name} change", stats["last_change_age"]))),
        ("Last catch-up", _ago(moments.ago(f"{name} catch-up", stats["last_catch_up_age"]))),
        ("Gaps", count(stats["gaps"])),
        ("Rows Realtime lost", count(stats["lost"])),
        ("Found by reading", count(stats["caught_up"])),
        ("Live changes", count(stats["received"])),
        ("Connections made", count(stats["connects"])),
        ("Resyncs", count(stats["resyncs"])),
    ]
    keys = ("delivered", "failed", "skipped", "waiting")
    rows = [
        [
            f"{handler} (behind)" if each["is_behind"] else handler,
            *(count(each[key]) for key in keys),
        ]
        for handler, each in stats["handlers"].items()
    ]
    head = ["handler", *keys]
    return facts, table(f"Handlers of {short(name)}", head, rows, numbers_from=1) if rows else None


def _of_verification(
    _: Snapshot, name: str, stats: Values, moments: Moments
) -> tuple[Facts, Html | None]:
    report = stats["last_report"]
    facts: Facts = [
        ("Last complete pass", _ago(moments.ago(f"{name} pass", stats["last_pass_age"]))),
        ("Open violations", count(stats["open"])),
        ("Found", count(stats["problem_count"])),
        ("Fixed", count(stats["fixed"])),
        ("Lost to another writer", count(stats["cas_lost"])),
        ("Rows checked", count(stats["rows"])),
        ("Passes", count(stats["passes"])),
        ("Failed passes", count(stats["failed_passes"])),
    ]
    return facts, join(_progress(stats), None if report is None else _report(name, report))


def _progress(stats: Values) -> Html | None:
    share = stats["progress"]
    if share is None:
        return None
    bar = tag("progress", f"{share:.0%}", value=f"{share:.3f}", max=1)
    return tag("p", tag("label", f"This pass: {share:.0%} ", bar), class_="progress")


def _report(name: str, report: Values) -> Html:
    rows = [
        [
            rule["name"],
            rule["severity"],
            count(rule["violations"]),
            count(rule["fixed"]),
            count(rule["open"]),
        ]
        for rule in report["rules"]
    ]
    which = "changed rows" if report["is_incremental"] else "all rows"
    dry = ", a dry run" if report["is_dry_run"] else ""
    told = (
        f"Last pass: {plural(report['rows'], 'row')} in {precise(report['seconds'])}, {which}{dry}."
    )
    warnings = [
        tag("p", text, class_="reason") for text in (report["aborted"], report["failure"]) if text
    ]
    head = ["rule", "severity", "found", "fixed", "open"]
    rules = table(f"Rules of {short(name)} in the last pass", head, rows, numbers_from=2)
    return join(tag("p", told, class_="note"), *warnings, rules if rows else None)


def _ago(age: Html | None) -> Html:
    return Html("none yet") if age is None else join(age, " ago")


def _known(number: int | None) -> str | None:
    return None if number is None else count(number)


def _precise(seconds: float | None) -> str:
    return "none yet" if seconds is None else precise(seconds)


_KINDS: Mapping[str, Callable[[Snapshot, str, Values, Moments], tuple[Facts, Html | None]]] = {
    "breaker": _of_breaker,
    "queue": _of_queue,
    "listener": _of_listener,
    "verification": _of_verification,
}
