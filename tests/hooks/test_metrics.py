"""The table of metrics, and what one look at statistics after another says."""

import importlib
import re
import sys
from dataclasses import replace

import pytest

from supabase_resilience.events import Event
from supabase_resilience.hooks._looks import Looks, samples
from supabase_resilience.hooks._metrics import METRICS
from supabase_resilience.testing import FakeClock

BASE_UNITS = {"_seconds": "s", "_ratio": "1"}
NOW = 1_000_000.0


def told(found):
    """By name and labels, as a reader of the metrics would ask for them."""
    return {(each.metric.name, *each.labels): each.value for each in found}


def test_names_say_kind_and_unit():
    """Counters end with `_total`, times with `_seconds`; no name is there twice."""
    assert len(METRICS) == len({metric.name for metric in METRICS})
    for metric in METRICS:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert (metric.unit == "s") == metric.name.endswith("_seconds")
        assert metric.help.endswith(".")


def test_labels_are_names_and_closed_sets():
    """No label is made for a key, an id or the text of an error."""
    parts = {"breaker", "queue", "listener", "handler", "verification", "rule", "alert"}
    closed = {"state", "cause", "outcome", "to", "method", "source", "severity", "command"}
    assert parts | closed == {label for metric in METRICS for label in metric.labels}


def test_every_number_of_the_statistics_is_there(stats):
    """Each count and gauge, under the name of its part."""
    found = told(samples(stats, NOW))
    expected = {
        ("circuit_state", "supabase", "open"): 1,
        ("circuit_state", "supabase", "closed"): 0,
        ("circuit_cause", "supabase", "failure"): 1,
        ("circuit_cause", "supabase", "blocked"): 0,
        ("circuit_calls_total", "supabase", "success"): 100,
        ("circuit_calls_total", "supabase", "refused"): 40,
        ("circuit_transitions_total", "supabase", "open"): 2,
        ("retry_attempts_total", "supabase", "made"): 6,
        ("retry_attempts_total", "supabase", "over_budget"): 4,
        ("retry_budget_tokens", "supabase"): 9.5,
        ("queue_state", "mails", "running"): 1,
        ("queue_unreachable", "mails"): 1,
        ("queue_paused_for_outage", "mails"): 1,
        ("queue_depth", "mails", "waiting"): 8,
        ("jobs_enqueued_total", "mails"): 30,
        ("jobs_total", "mails", "dead"): 2,
        ("job_leases_lost_total", "mails"): 6,
        ("job_handlers_abandoned_total", "mails"): 7,
        ("listener_state", "projects", "live"): 1,
        ("listener_changes_total", "projects", "catch_up"): 9,
        ("listener_changes_lost_total", "projects"): 4,
        ("listener_last_catch_up_timestamp_seconds", "projects"): NOW - 20,
        ("listener_handler_changes_total", "projects", "notify", "skipped"): 1,
        ("listener_handler_waiting", "projects", "notify"): 3,
        ("verification_fixes_total", "orders", "cas_lost"): 3,
        ("verification_open_violations", "orders", "total_matches", "error"): 1,
        ("verification_fixing_aborted", "orders"): 0,
        ("verification_pass_progress_ratio", "orders"): 0.5,
        ("verification_last_pass_success_timestamp_seconds", "orders"): NOW - 100,
    }
    assert expected == {key: found.get(key) for key in expected}


def test_circuits_of_tables_are_counted_not_named(stats):
    """There may be hundreds: they are one number of the breaker that they belong to."""
    found = told(samples(stats, NOW))
    assert 1 == found["circuit_keys_open", "supabase"]
    assert not any("orders" in key[1] for key in found if key[0].startswith("circuit"))


def test_a_breaker_with_a_slash_in_its_name_is_one_of_its_own(stats):
    """`api/v2` is not a table of `api`."""
    breaker = stats["breaker:supabase"]
    found = told(
        samples(
            {
                "breaker:api": replace(breaker, name="api"),
                "breaker:api/v2": replace(breaker, name="api/v2"),
            },
            NOW,
        )
    )
    assert 100 == found["circuit_calls_total", "api/v2", "success"]


def test_what_nobody_knows_has_no_series(stats):
    """No budget, no change yet, no report."""
    found = told(
        samples(
            {
                "breaker:supabase": replace(stats["breaker:supabase"], budget_left=None),
                "listener:projects": replace(stats["listener:projects"], last_change_age=None),
                "verification:orders": replace(stats["verification:orders"], last_report=None),
            },
            NOW,
        )
    )
    names = {name for name, *_ in found}
    assert "listener_last_catch_up_timestamp_seconds" in names
    assert names.isdisjoint(
        {
            "retry_budget_tokens",
            "listener_last_change_timestamp_seconds",
            "verification_open_violations",
        }
    )


def test_counters_tell_their_growth(stats):
    """All at the first look, what is new at the next, nothing when nothing happened."""
    looks, key = Looks(FakeClock(NOW)), ("circuit_calls_total", "supabase", "success")
    assert 100 == told(looks.look(stats))[key]
    assert 0 == told(looks.look(stats))[key]
    more = stats | {"breaker:supabase": replace(stats["breaker:supabase"], successes=130)}
    assert 30 == told(looks.look(more))[key]


def test_a_counter_that_goes_back_belongs_to_a_new_part(stats):
    """All that it counts is news."""
    looks, key = Looks(FakeClock(NOW)), ("circuit_calls_total", "supabase", "success")
    looks.look(stats)
    anew = stats | {"breaker:supabase": replace(stats["breaker:supabase"], successes=3)}
    assert 3 == told(looks.look(anew))[key]


def test_a_rule_that_is_gone_has_no_violations(stats):
    """Its last number does not stay for ever; other parts that are not looked at keep theirs."""
    looks, verification = Looks(FakeClock(NOW)), stats["verification:orders"]
    looks.look(stats)
    other = replace(verification.last_report, rules={})
    other.rule("in_stock")
    found = told(looks.look({"verification:orders": replace(verification, last_report=other)}))
    assert 0 == found["verification_open_violations", "orders", "total_matches", "error"]
    assert not any(name.startswith("circuit") for name, *_ in found)


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus"),
        ("otel", "opentelemetry", "otel"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, module, package, extra):
    """The error says what to install."""
    name = f"supabase_resilience.hooks.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for loaded in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'pip install "supabase-resilience\[{extra}\]"'):
        importlib.import_module(name)


def test_events_in_the_table_are_events():
    """Each has a class of ours, or several."""
    for metric in METRICS:
        for kind in metric.of if isinstance(metric.of, tuple) else ():
            assert issubclass(kind, Event)
