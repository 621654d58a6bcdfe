"""What a pass tells: a table, a chat message, JSON, a page, an exit code."""

import json
import re
from datetime import UTC, datetime

import pytest

from supabase_resilience.verification import Problem, Report

BAD = "<script>alert(1)</script>"
HTML_VOID = {"meta"}


def report(**options) -> Report:
    begun = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    made = Report("public.orders", **{"rows": 1200, "seconds": 2.0, "started_at": begun, **options})
    made.rule("dated")
    made.rule("paid", "warning")
    return made


def filled() -> Report:
    made = report()
    for key in range(7):
        made.add(Problem("dated", key, "left"))
    made.add(Problem("dated", 8, "fixed"))
    made.add(Problem("paid", ["a", 1], "cas_lost", "somebody else has written the row"))
    made.rule("dated").flagged = 9
    made.rule("dated").settled = 1
    return made


def test_a_clean_report_says_so():
    """In one line, and with exit code 0."""
    made = report()
    assert 0 == made.exit_code
    assert "public.orders: clean; 1,200 rows in 2.0 s, 0 violations, 0 fixed" == made.headline
    assert 600.0 == made.rows_per_second
    assert "• dated (error): none broken" in made.summary()
    assert 0.0 == Report("t").rows_per_second


def test_violations_that_are_left_make_an_exit_code_of_1():
    """Those that were fixed do not."""
    made = filled()
    assert (9, 1, 8, 1) == (made.violations, made.fixed, made.open, made.exit_code)
    assert [0, 1, 2, 3, 4, 5, 6, ["a", 1]] == list(made.failing_ids())
    assert [["a", 1]] == list(made.failing_ids("paid"))
    only_fixed = report()
    only_fixed.add(Problem("dated", 8, "fixed"))
    assert 0 == only_fixed.exit_code


def test_a_pass_that_failed_has_an_exit_code_of_2():
    """Whatever it had found before."""
    made = report(failure="APIError: no", is_dry_run=True)
    assert 2 == made.exit_code
    assert "public.orders: failed (dry run); " in made.headline


def test_as_text_it_is_a_table():
    """Only with the fates that came; what aborted it stands below."""
    made = filled()
    made.aborted, made.failure = "fixing stopped", "failed"
    assert [
        "public.orders: failed; 1,200 rows in 2.0 s, 9 violations, 1 fixed",
        "rule   severity  violations  cas_lost  fixed  left",
        "dated  error     8           0         1      7",
        "paid   warning   1           1         0      0",
        "fixing stopped",
        "failed",
    ] == str(made).splitlines()


def test_a_summary_names_the_first_rows_that_are_broken():
    """And says that there are more."""
    made = filled()
    made.aborted = "fixing stopped"
    assert [
        "public.orders: 8 open; 1,200 rows in 2.0 s, 9 violations, 1 fixed",
        "• dated (error): 1 fixed, 7 left",
        "  still broken: 0, 1, 2, 3, 4 …",
        "• paid (warning): 1 cas_lost",
        "  still broken: ['a', 1]",
        "! fixing stopped",
    ] == made.summary().splitlines()


def test_a_summary_fits_into_a_chat_message():
    """However many rules and however long keys there are."""
    made = report()
    for number in range(200):
        made.add(Problem(f"rule {number}", "k" * 500, "left"))
    assert 3000 == len(made.summary())
    assert made.summary().endswith("\n…")


def test_for_json_it_is_a_dict():
    """With the first problems, and where the others are."""
    said = json.loads(json.dumps(filled().to_dict(max_problems=8)))
    assert (8, None) == (len(said["problems"]), said["problems_file"])
    assert {"rule": "dated", "key": 8, "fate": "fixed", "reason": ""} == said["problems"][7]
    assert "2026-01-02T03:04:05+00:00" == said["started_at"]
    numbers = ["rows", "rows_per_second", "violations", "fixed", "open", "exit_code", "seconds"]
    assert [1200, 600.0, 9, 1, 8, 1, 2.0] == [said[name] for name in numbers]
    assert {
        "name": "dated",
        "severity": "error",
        "flagged": 9,
        "settled": 1,
        "violations": 8,
        "fates": {"left": 7, "fixed": 1},
    } == said["rules"][0]
    assert [False, False, None, None] == [
        said[name] for name in ("is_dry_run", "is_incremental", "aborted", "failure")
    ]


# --- many problems --------------------------------------------------------------------------------


def test_all_problems_are_kept_however_many_there_are():
    """In a file of JSON lines, beyond ten thousand; in their order."""
    made = report()
    for key in range(25_000):
        made.add(Problem("dated", key, "left", "r"))
    path = made.problems.path
    try:
        assert 25_000 == len(made.problems) == made.open
        assert list(range(25_000)) == list(made.failing_ids())
        made.add(Problem("dated", "last", "left"))
        assert "last" == list(made.failing_ids())[-1]
        assert str(path) == made.to_dict()["problems_file"]
        lines = path.read_text(encoding="utf-8").splitlines()
        assert 25_001 == len(lines)
        assert {"rule": "dated", "key": 0, "fate": "left", "reason": "r"} == json.loads(lines[0])
        assert path == made.problems.path
    finally:
        path.unlink()


# --- sums -----------------------------------------------------------------------------------------


def test_reports_of_parts_add_up():
    """Rules, problems, rows; the time is that of the slowest, a failure is a failure of all."""
    one, other = filled(), filled()
    other.seconds, other.rows = 3.0, 800
    other.started_at = datetime(2026, 1, 1, tzinfo=UTC)
    other.aborted, other.failure, other.is_incremental = "a", "f", True
    other.add(Problem("more", 1, "error"))
    total = one + other
    assert (2000, 3.0, 19, 2, 17) == (
        total.rows,
        total.seconds,
        total.violations,
        total.fixed,
        total.open,
    )
    assert ("a", "f", True, False) == (
        total.aborted,
        total.failure,
        total.is_incremental,
        total.is_dry_run,
    )
    assert other.started_at == total.started_at
    assert (18, 2) == (total.rules["dated"].flagged, total.rules["dated"].settled)
    assert [*one.failing_ids(), *other.failing_ids()] == list(total.failing_ids())
    assert "warning" == total.rules["paid"].severity
    assert 9 == one.violations


def test_reports_of_different_tables_do_not_add_up():
    """They are about something else."""
    with pytest.raises(ValueError, match=r"of public\.orders and of public\.other do not add up"):
        report() + Report("public.other")


# --- a page ---------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else():
    """No network, no script; what is in names and reasons is text."""
    made = Report(f"public.{BAD}", aborted=BAD, failure=f"{BAD}&")
    made.add(Problem(BAD, BAD, "left", BAD))
    made.add(Problem(BAD, 'a"b', "fixed", "r"))
    page = made.to_html()
    assert "<script" not in page
    assert 7 <= page.count("&lt;script&gt;")
    assert "a&quot;b" in page
    assert not re.search(r"(src|href|@import|url\(|https?:)", page)
    assert page.startswith("<!doctype html>")
    opened = re.findall(r"<([a-z0-9]+)[ >]", page.split("</style>")[1])
    closed = re.findall(r"</([a-z0-9]+)>", page.split("</style>")[1])
    outside = {"html", "head", "body"}
    assert sorted({*opened} - HTML_VOID - outside) == sorted({*closed} - outside)
    assert all(opened.count(tag) == closed.count(tag) for tag in {*opened} - HTML_VOID - outside)


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, '<p class="verdict good" role="status">Clean</p>'),
        ({"is_dry_run": True}, "Clean (dry run: nothing was written)"),
        ({"failure": "no"}, '<p class="verdict bad" role="status">The pass failed</p>'),
        ({"is_incremental": True}, "Begun 2026-01-02 03:04:05 UTC; changed rows."),
    ],
)
def test_the_page_begins_with_a_verdict(options, verdict):
    """A person sees first what there is to do."""
    page = report(**options).to_html()
    assert verdict in page
    assert "<p>No row breaks a rule.</p>" in page


def test_the_page_shows_the_first_problems_and_counts_the_others():
    """It stays small enough to be sent."""
    made = filled()
    assert "Violations are left" in made.to_html()
    assert '<th scope="row" class="bad">dated</th>' in made.to_html()
    assert '<th scope="row" class="warn">paid</th>' in made.to_html()
    for key in range(1000):
        made.add(Problem("dated", key, "left"))
    page = made.to_html()
    assert "509 more are in the full report." in page
    assert 500 == page.count('class="key"')
