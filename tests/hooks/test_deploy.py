"""Alert rules, dashboard and table: printed from the metrics, and judged by Prometheus itself."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from supabase_resilience.__main__ import main
from supabase_resilience.hooks._metrics import METRICS, NAMESPACE
from supabase_resilience.hooks._promql import expand
from supabase_resilience.hooks._rules import alert_rules, rules_yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not here: install Prometheus to have the rules checked"
)
RULES = alert_rules(catch_up_interval=60.0, verification_interval=3600.0)


def printed(capsys, *arguments):
    assert 0 == main(["monitoring", *arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "file"), [("rules", "prometheus-rules.yml"), ("dashboard", "grafana.json")]
)
def test_what_is_shipped_is_what_is_printed(capsys, what, file):
    """The files in `deploy/` cannot drift from the metrics."""
    shipped = (DEPLOY / file).read_text(encoding="utf-8")
    assert shipped == printed(capsys, what), f"make it anew: monitoring {what} > deploy/{file}"


def test_the_table_has_a_line_for_each_metric(capsys):
    """With its kind, unit and labels."""
    lines = printed(capsys, "table").splitlines()
    assert 2 + len(METRICS) == len(lines)
    assert (
        "| `supabase_resilience_circuit_calls_total` | counter | call | `breaker`, `outcome` |"
        " Attempts by how the circuit judged them, and calls that it refused. |"
    ) in lines


def test_the_readme_has_the_table(capsys):
    """As it is printed: README cannot drift from the metrics either."""
    readme = (DEPLOY.parent / "README.md").read_text(encoding="utf-8")
    assert printed(capsys, "table").strip() in readme, "paste what `monitoring table` prints"


def test_rules_know_the_intervals_of_the_app(capsys):
    """Three of them without success are an alert."""
    told = printed(capsys, "rules", "--catch-up-interval", "10", "--verification-interval", "600")
    assert "> 30 and on" in told
    assert "> 1800 and on" in told
    assert "for: 1800s" in told


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "nan", "soon"])
def test_an_interval_is_a_time(capsys, seconds):
    """Anything else is misuse."""
    with pytest.raises(SystemExit) as ended:
        main(["monitoring", "rules", f"--catch-up-interval={seconds}"])
    assert 2 == ended.value.code


@pytest.mark.parametrize("file", ["prometheus-rules.yml", "grafana.json"])
def test_every_metric_that_is_asked_for_is_in_the_table(file):
    """A panel or rule on a metric that nobody makes would be empty, and quiet, for ever."""
    names = {metric.full_name for metric in METRICS} | {
        f"{metric.full_name}_bucket" for metric in METRICS if metric.kind == "histogram"
    }
    text = (DEPLOY / file).read_text(encoding="utf-8")
    asked = set(re.findall(rf"{NAMESPACE}_\w+", text))
    assert len(asked) > 10
    assert set() == asked - names


def test_a_metric_that_is_not_there_cannot_be_asked_for():
    """A misspelled name is an error, not an alert that never fires."""
    with pytest.raises(KeyError):
        expand("sum($circuit_stats)")


def test_labels_that_are_asked_for_are_in_the_table():
    """In each rule, of the metrics that it names."""
    words = {"job", "le"} | {label for metric in METRICS for label in metric.labels}
    for rule in RULES:
        by = {each.strip() for group in re.findall(r"by \(([^)]*)\)", rule.query)
              for each in group.split(",")}  # fmt: skip
        asked = by | set(re.findall(r"[{,]\s*(\w+)(?==|!=)", rule.query))
        assert set() == asked - words, rule.name


def test_a_dashboard_has_room_for_each_panel():
    """No two are in the same place, and each asks something."""
    panels = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))["panels"]
    assert len(panels) == len({panel["id"] for panel in panels})
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert taken.isdisjoint(cells)
        assert max(column for column, _ in cells) < 24
        taken |= cells
        assert panel["type"] == "row" or all(each["expr"] for each in panel["targets"])


def test_each_rule_says_what_to_do():
    """Its summary, what it means, and the way out of it."""
    for rule in RULES:
        assert rule.severity in {"critical", "warning"}
        assert all((rule.summary, rule.description, rule.runbook)), rule.name
    assert len(RULES) == len({rule.name for rule in RULES})


# --- by promtool ----------------------------------------------------------------------------------

# For each rule: series, a value a minute, when it has to be quiet, firing, and quiet again.
HOUR = 60
CIRCUIT, CALLS = '{job="app",breaker="b"', '{job="app",breaker="b",outcome='
QUEUE, LISTENER, ORDERS = (
    '{job="app",queue="q"',
    '{job="app",listener="l"',
    '{job="app",verification="v"',
)
LIVE = {f'listener_state{LISTENER},state="live"}}': "1x600"}
VERIFYING = {f'verification_state{ORDERS},state="waiting"}}': "1x2000"}
CASES = {
    "SupabaseCircuitOpen": (
        {f'circuit_state{CIRCUIT},state="open"}}': "0x5 1x4 0x0 1x3 0x20",
         f'circuit_state{CIRCUIT},state="half_open"}}': "0x5 0x4 1x0 0x3 0x20"},
        (5, 13, 25),
    ),
    "SupabaseBlocked": ({f'circuit_cause{CIRCUIT},cause="blocked"}}': "0x5 1x5 0x20"}, (5, 8, 20)),
    "SupabaseTableCircuitOpen": ({f"circuit_keys_open{CIRCUIT}}}": "0x5 1x20 0x20"}, (15, 24, 40)),
    "SupabaseRetryShareHigh": (
        {f'retry_attempts_total{CALLS}"made"}}': "0+1x10 11+30x30 911+0x40",
         f'circuit_calls_total{CALLS}"success"}}': "0+60x90",
         f'circuit_calls_total{CALLS}"refused"}}': "0+600x90"},
        (10, 35, 70),
    ),
    "SupabaseQueueUnreachable": ({f"queue_unreachable{QUEUE}}}": "0x5 2x10 0x20"}, (8, 14, 25)),
    "SupabaseQueueOld": ({f"queue_oldest_age_seconds{QUEUE}}}": "0+60x20 10x20"}, (5, 18, 30)),
    "SupabaseJobsWait": (
        {f'job_wait_seconds_bucket{QUEUE},le="120"}}': "0+10x10 100+0x20 100+10x60",
         f'job_wait_seconds_bucket{QUEUE},le="300"}}': "0+10x90",
         f'job_wait_seconds_bucket{QUEUE},le="+Inf"}}': "0+10x90"},
        (9, 28, 60),
    ),
    "SupabaseDeadLetters": (
        {f'jobs_total{QUEUE},outcome="dead"}}': "0x10 1x60"}, (9, 15, 40)
    ),
    "SupabaseListenerRefused": (
        {f'listener_state{LISTENER},state="refused"}}': "0x5 1x5 0x20"}, (5, 9, 20)
    ),
    "SupabaseListenerNotLive": (
        {f'listener_state{LISTENER},state="connecting"}}': "0x5 1x4 0x20",
         f'listener_state{LISTENER},state="catching_up"}}': "0x5 0x4 1x4 0x20"},
        (9, 13, 25),
    ),
    "SupabaseCatchUpOverdue": (
        LIVE | {f"listener_last_catch_up_timestamp_seconds{LISTENER}}}": "0+60x5 300x10 960+60x20"},
        (5, 12, 25),
    ),
    "SupabaseRealtimeLosesChanges": (
        {f"listener_changes_lost_total{LISTENER}}}": "0x10 7x120"}, (9, 15, 90)
    ),
    "SupabaseChangesSkipped": (
        {f'listener_handler_changes_total{LISTENER},handler="h",outcome="skipped"}}': "0x10 1x60"},
        (9, 15, 40),
    ),
    "SupabaseVerificationOverdue": (
        VERIFYING | {
            f"verification_last_pass_success_timestamp_seconds{ORDERS}}}": "60x239 14400x60"
        },
        (2 * HOUR, 3 * HOUR + 10, 4 * HOUR + 10),
    ),
    "SupabaseVerificationNeverDone": (
        VERIFYING | {f'verification_passes_total{ORDERS},outcome="completed"}}': "0x239 1x60"},
        (2 * HOUR, 3 * HOUR + 10, 4 * HOUR + 10),
    ),
    "SupabaseViolations": (
        {f'verification_open_violations{ORDERS},rule="r",severity="error"}}': "0x5 3x5 0x20",
         f'verification_open_violations{ORDERS},rule="w",severity="warning"}}': "9x40"},
        (5, 8, 20),
    ),
    "SupabaseFixingAborted": (
        {f"verification_fixing_aborted{ORDERS}}}": "0x5 1x5 0x20"}, (5, 8, 20)
    ),
    "SupabaseFixesFight": (
        {f'verification_fixes_total{ORDERS},outcome="cas_lost"}}': "0x20 40x900",
         f'verification_fixes_total{ORDERS},outcome="fixed"}}': "0x10 10x10 110x900"},
        (19, 30, 7 * HOUR),
    ),
    "SupabaseAppAlert": ({'alert_firing{job="app",alert="a"}': "0x5 1x5 0x20"}, (5, 8, 20)),
}  # fmt: skip


def promtool(*arguments):
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_accepts_the_rules(tmp_path):
    """All of them, with any intervals."""
    file = tmp_path / "rules.yml"
    file.write_text(rules_yaml(catch_up_interval=0.5, verification_interval=86400.0))
    for each in (file, DEPLOY / "prometheus-rules.yml"):
        assert f"{len(RULES)} rules found" in promtool("check", "rules", str(each))


def test_each_rule_has_a_case():
    """None is shipped that was never seen to fire."""
    assert {rule.name for rule in RULES} == set(CASES)


@needs_promtool
def test_each_alert_fires_and_goes_quiet(tmp_path):
    """Not too early, when it should, and not for ever."""
    tests = [case(name, *facts) for name, facts in CASES.items()]
    file = tmp_path / "tests.yml"
    rules = str(DEPLOY / "prometheus-rules.yml")
    file.write_text(json.dumps({"rule_files": [rules], "tests": tests}))  # JSON is YAML, too
    promtool("test", "rules", str(file))


def case(name, series, moments):
    """One test of promtool: no alert, one, none; Prometheus knows it by all but its values."""
    rule = next(each for each in RULES if each.name == name)
    expected = [
        {
            "eval_time": f"{minute}m",
            "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
        }
        | {"exp_samples": [{"labels": "{}", "value": 1}] if is_firing else []}
        for minute, is_firing in zip(moments, (False, True, False), strict=True)
    ]
    return {
        "name": rule.name,
        "interval": "1m",
        "input_series": [
            {"series": f"{NAMESPACE}_{selector}", "values": values}
            for selector, values in series.items()
        ],
        "promql_expr_test": expected,
    }
