"""Alerts: told once when a condition has held, once when it is over, and never in between."""

import pytest

from supabase_resilience import Alert
from supabase_resilience._alerts import AlertBook
from supabase_resilience.events import AlertCleared, AlertFired
from supabase_resilience.testing import RecordingHook


def told(book: AlertBook, *looks: tuple[float, int]) -> list[tuple[float, str, float]]:
    """What is told at which of some looks, each a time and the number of problems."""
    found = []
    for now, problems in looks:
        for _, event in book.look({"problems": problems}, now):
            found.append((now, event.name, event.seconds))
    return found


def many(stats) -> bool:
    return stats["problems"] > 100


def test_it_is_told_once_and_its_end_once() -> None:
    """However often one looks meanwhile."""
    book = AlertBook([Alert("problems", when=many)])
    looks = [(0, 100), (1, 101), (2, 500), (3, 101), (4, 100), (5, 0)]
    assert [(1, "alert.fired", 0), (4, "alert.cleared", 3)] == told(book, *looks)


def test_it_has_to_hold() -> None:
    """A peak that is over before `hold` seconds is nobody's business."""
    book = AlertBook([Alert("problems", when=many, hold=60)])
    peak = [(0, 101), (59, 101), (60, 0)]
    lasting = [(70, 101), (129, 101), (130, 101), (131, 101)]
    assert [(130, "alert.fired", 60)] == told(book, *peak, *lasting)


def test_its_end_has_to_hold_as_long() -> None:
    """Unless `rest` says otherwise."""
    book = AlertBook([Alert("problems", when=many, hold=10)])
    looks = [(0, 101), (10, 101), (20, 0), (25, 101), (30, 0), (39, 0), (40, 0)]
    assert [(10, "alert.fired", 10), (40, "alert.cleared", 30)] == told(book, *looks)
    quick = AlertBook([Alert("problems", when=many, hold=10, rest=0)])
    assert [(10, "alert.fired", 10), (20, "alert.cleared", 10)] == told(quick, *looks[:3])


def test_between_two_thresholds_it_stays_as_it_is() -> None:
    """`until` below the threshold of `when` keeps it from fluttering."""
    alert = Alert("problems", when=many, until=lambda stats: stats["problems"] < 10)
    looks = [(0, 50), (1, 101), (2, 50), (3, 101), (4, 9), (5, 50)]
    assert [(1, "alert.fired", 0), (4, "alert.cleared", 3)] == told(AlertBook([alert]), *looks)


def test_a_condition_that_raises_says_nothing(caplog) -> None:
    """It neither fires nor clears, is logged once, and keeps no other from being told."""

    def broken(stats):
        if stats["problems"] == 7:
            raise KeyError("problems")
        return many(stats)

    alerts = [Alert("broken", when=broken), Alert("sound", when=many)]
    book = AlertBook(alerts)
    looks = [(0, 7), (1, 7), (2, 101), (3, 7), (4, 0)]
    names = [(now, name) for now, name, _ in told(book, *looks)]
    fired, cleared = "alert.fired", "alert.cleared"
    assert [(2, fired), (2, fired), (3, cleared), (4, cleared)] == names
    assert 2 == sum("'broken' failed" in message for message in caplog.messages)


def test_it_goes_to_its_own_hook() -> None:
    """None says that it is told to whoever hears all else."""
    page = RecordingHook()
    book = AlertBook([Alert("one", when=many, tell=page), Alert("two", when=many)])
    (one, first), (two, second) = book.look({"problems": 101}, 0)
    assert [page, None] == [one, two]
    assert [AlertFired(alert="one", seconds=0), AlertFired(alert="two", seconds=0)] == [
        first,
        second,
    ]
    assert ("one", "two") == book.firing()
    assert isinstance(book.look({"problems": 0}, 1)[0][1], AlertCleared)
    assert () == book.firing()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"name": ""}, ValueError, "name"),
        ({"name": 7}, TypeError, "name"),
        ({"when": 100}, TypeError, "when"),
        ({"until": 100}, TypeError, "until"),
        ({"hold": -1}, ValueError, "hold"),
        ({"hold": float("nan")}, ValueError, "hold"),
        ({"rest": "1"}, TypeError, "rest"),
        ({"tell": "me"}, TypeError, "tell"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(options, error, says) -> None:
    """The error names the argument."""
    with pytest.raises(error, match=says):
        Alert(**{"name": "problems", "when": many, **options})


def test_two_of_one_name_are_refused() -> None:
    """Nobody could tell which of them was told."""
    with pytest.raises(ValueError, match="problems"):
        AlertBook([Alert("problems", when=many), Alert("problems", when=many)])
    with pytest.raises(TypeError, match="Alert"):
        AlertBook([many])  # type: ignore[list-item]
