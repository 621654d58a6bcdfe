"""A Grafana dashboard, written from the table of metrics.

It answers three questions from top to bottom: is it alive, is it keeping up, what failed and why.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from supabase_resilience.hooks._promql import expand

__all__ = ["dashboard_json"]

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_STATES = "$circuit_state|$queue_state|$listener_state|$verification_state"
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3
_GREEN, _YELLOW, _RED = "green", "yellow", "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """One panel: queries by what their series are called; `limits` turn it yellow, then red."""

    title: str
    queries: dict[str, str]
    kind: str = "timeseries"
    unit: str = "short"
    limits: tuple[float, float] | None = None
    text: str = ""


def _rate(metric: str, *by: str, where: str = "") -> str:
    selector = f'{{job=~"$job"{where}}}'
    return f"sum by ({', '.join(by)}) (rate(${metric}{selector}[$__rate_interval]))"


def _sum(metric: str, *by: str, where: str = "") -> str:
    return f'sum by ({", ".join(by)}) (${metric}{{job=~"$job"{where}}})'


def _max(metric: str, *by: str) -> str:
    return f'max by ({", ".join(by)}) (${metric}{{job=~"$job"}})'


def _growth(metric: str, *by: str, where: str = "") -> str:
    selector = f'{{job=~"$job"{where}}}'
    return f"sum by ({', '.join(by)}) (increase(${metric}{selector}[$__range]))"


def _p95(metric: str, *by: str) -> str:
    buckets = _rate(f"{metric}_bucket", *by, "le")
    return f"histogram_quantile(0.95, {buckets})"


def _since(metric: str, by: str, choose: str) -> str:
    return f'time() - {choose} by ({by}) (${metric}{{job=~"$job"}})'


_ALIVE = (
    _Panel(
        title="Circuits that refuse calls",
        kind="stat",
        queries={
            "{{breaker}}": _sum(
                "circuit_state", "breaker", where=', state=~"open|half_open|forced_open"'
            )
        },
        limits=(1, 1),
        text="In how many processes the circuit is not closed.",
    ),
    _Panel(
        title="Listeners that are not live",
        kind="stat",
        queries={
            "{{listener}}": _sum(
                "listener_state", "listener", where=', state=~"connecting|catching_up|refused"'
            )
        },
        limits=(1, 1),
    ),
    _Panel(
        title="Queues that cannot be read, or are paused",
        kind="stat",
        queries={
            "{{queue}} unreachable": _sum("queue_unreachable", "queue"),
            "{{queue}} paused": _sum("queue_paused_for_outage", "queue"),
        },
        limits=(1, 1),
    ),
    _Panel(
        title="Why circuits are open",
        queries={"{{breaker}} {{cause}}": _sum("circuit_cause", "breaker", "cause")},
        text="Blocked is a matter of key, bill or a paused project, and needs a person.",
    ),
    _Panel(
        title="Attempts and refused calls",
        queries={"{{breaker}} {{outcome}}": _rate("circuit_calls_total", "breaker", "outcome")},
        unit="ops",
    ),
    _Panel(
        title="Duration of calls, 95 %",
        queries={"{{breaker}} {{method}}": _p95("call_duration_seconds", "breaker", "method")},
        unit="s",
        text="With all attempts of a call.",
    ),
)

_KEEPING_UP = (
    _Panel(
        title="Oldest job",
        queries={
            "{{queue}} oldest": _max("queue_oldest_age_seconds", "queue"),
            "{{queue}} waited, 95 %": _p95("job_wait_seconds", "queue"),
        },
        unit="s",
        limits=(120, 300),
        text="The oldest is known only where the app hands in processor.metrics().",
    ),
    _Panel(
        title="Jobs",
        queries={"{{queue}} {{outcome}}": _rate("jobs_total", "queue", "outcome")},
        unit="ops",
    ),
    _Panel(
        title="Jobs waiting and in flight",
        queries={
            "{{queue}} {{state}}": _sum("queue_depth", "queue", "state"),
            "{{queue}} {{state}} on the server": _max("queue_jobs", "queue", "state"),
        },
    ),
    _Panel(
        title="Duration of jobs, 95 %",
        queries={"{{queue}} {{outcome}}": _p95("job_duration_seconds", "queue", "outcome")},
        unit="s",
    ),
    _Panel(
        title="Since the last catch-up",
        queries={
            "{{listener}}": _since("listener_last_catch_up_timestamp_seconds", "listener", "min")
        },
        unit="s",
    ),
    _Panel(
        title="Changes",
        queries={"{{listener}} {{source}}": _rate("listener_changes_total", "listener", "source")},
        unit="ops",
    ),
    _Panel(
        title="Changes waiting for handlers",
        queries={
            "{{listener}} {{handler}}": _sum("listener_handler_waiting", "listener", "handler")
        },
    ),
    _Panel(
        title="Duration of handlers, 95 %",
        queries={
            "{{listener}} {{handler}}": _p95(
                "listener_handler_duration_seconds", "listener", "handler"
            )
        },
        unit="s",
    ),
    _Panel(
        title="Since the last complete pass",
        queries={
            "{{verification}}": _since(
                "verification_last_pass_success_timestamp_seconds", "verification", "max"
            )
        },
        unit="s",
    ),
    _Panel(
        title="Progress of the pass",
        queries={"{{verification}}": _max("verification_pass_progress_ratio", "verification")},
        unit="percentunit",
    ),
    _Panel(
        title="Duration of catch-ups and requests of passes, 95 %",
        queries={
            "{{listener}}": _p95("listener_catch_up_duration_seconds", "listener"),
            "{{verification}} {{command}}": _p95(
                "verification_batch_duration_seconds", "verification", "command"
            ),
        },
        unit="s",
    ),
)

_FAILED = (
    _Panel(
        title="Alerts of the app",
        kind="stat",
        queries={"{{alert}}": _max("alert_firing", "alert")},
        limits=(1, 1),
    ),
    _Panel(
        title="Dead letters",
        kind="stat",
        queries={"{{queue}}": _growth("jobs_total", "queue", where=', outcome="dead"')},
        limits=(1, 1),
        text="In the time shown.",
    ),
    _Panel(
        title="Violations left by the last pass",
        kind="stat",
        queries={
            "{{verification}} {{rule}}": _max(
                "verification_open_violations", "verification", "rule"
            )
        },
        limits=(1, 1),
    ),
    _Panel(
        title="Retries",
        queries={"{{breaker}} {{outcome}}": _rate("retry_attempts_total", "breaker", "outcome")},
        unit="ops",
    ),
    _Panel(
        title="Lost leases and abandoned handlers",
        queries={
            "{{queue}} lost": _rate("job_leases_lost_total", "queue"),
            "{{queue}} abandoned": _rate("job_handlers_abandoned_total", "queue"),
        },
        unit="ops",
    ),
    _Panel(
        title="Circuits of single tables and functions",
        queries={"{{breaker}}": _sum("circuit_keys_open", "breaker")},
    ),
    _Panel(
        title="Changes that Realtime lost",
        kind="stat",
        queries={"{{listener}}": _growth("listener_changes_lost_total", "listener")},
        limits=(1, 1000),
        text="In the time shown; catching up found them.",
    ),
    _Panel(
        title="Gaps and connections",
        queries={
            "{{listener}} gaps": _rate("listener_gaps_total", "listener"),
            "{{listener}} connections": _rate("listener_connects_total", "listener"),
        },
        unit="ops",
    ),
    _Panel(
        title="Handlers of changes",
        queries={
            "{{listener}} {{handler}} {{outcome}}": _rate(
                "listener_handler_changes_total", "listener", "handler", "outcome"
            )
        },
        unit="ops",
    ),
    _Panel(
        title="Fixes",
        queries={
            "{{verification}} {{outcome}}": _growth(
                "verification_fixes_total", "verification", "outcome"
            )
        },
        text="In the time shown; cas_lost means that somebody changed the row first.",
    ),
    _Panel(
        title="Passes",
        queries={
            "{{verification}} {{outcome}}": _growth(
                "verification_passes_total", "verification", "outcome"
            )
        },
        text="In the time shown.",
    ),
)

_ROWS = {
    "Is it alive?": _ALIVE,
    "Is it keeping up?": _KEEPING_UP,
    "What failed, and why?": _FAILED,
}


def dashboard_json() -> str:
    """A dashboard to import; it asks for a Prometheus data source."""
    dashboard = {
        "title": "supabase-resilience",
        "uid": "supabase-resilience",
        "tags": ["supabase"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_data_source(), _jobs()]},
        "panels": [panel | {"id": number} for number, panel in enumerate(_panels(), 1)],
    }
    return json.dumps(dashboard, indent=2) + "\n"


def _data_source() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }


def _jobs() -> dict[str, Any]:
    return {
        "name": "job",
        "label": "App",
        "type": "query",
        "datasource": _SOURCE,
        "query": f'label_values({{__name__=~"{expand(_STATES)}"}}, job)',
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def _panels() -> Iterator[dict[str, Any]]:
    top = 0
    for title, panels in _ROWS.items():
        yield {
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": _WIDTH * _COLUMNS, "h": 1},
        }
        top += 1
        for number, panel in enumerate(panels):
            line, column = divmod(number, _COLUMNS)
            place = {"x": column * _WIDTH, "y": top + line * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            yield _panel(panel) | {"gridPos": place}
        top += -(-len(panels) // _COLUMNS) * _HEIGHT


def _panel(panel: _Panel) -> dict[str, Any]:
    is_stat = panel.kind == "stat"
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.limits is not None:
        defaults |= {"thresholds": _thresholds(*panel.limits), "color": {"mode": "thresholds"}}
        if not is_stat:
            defaults |= {
                "color": {"mode": "palette-classic"},
                "custom": {"thresholdsStyle": {"mode": "line"}},
            }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"colorMode": "background"} if is_stat else {},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": expand(query),
                "legendFormat": legend,
                "instant": is_stat,
                "range": not is_stat,
            }
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _thresholds(warning: float, critical: float) -> dict[str, Any]:
    steps = [{"color": _GREEN, "value": None}, {"color": _RED, "value": critical}]
    if warning < critical:
        steps.insert(1, {"color": _YELLOW, "value": warning})
    return {"mode": "absolute", "steps": steps}
