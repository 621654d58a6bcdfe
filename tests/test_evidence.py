"""BENCHMARKS.md is made from what programs print, tells what was missed, and can be read back.

A real benchmark is played small; two more programs print what the others would in a bad and in a
good hour.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
BENCHMARKS = TESTS / "benchmarks"
SMALL = "--demand 20 --capacity 30 --ends 30 --clients 20 --sample 1"
TARGETS = ["bench-outage", "bench-good", "bench-bad", "chaos-good"]
MAKEFILE = f"""
bench-outage:
\t{sys.executable} {BENCHMARKS}/outage.py {SMALL} $(ARGS)
bench-good:
\t@echo "### Speed"; echo "| measure | must reach | here | |"; echo "|---|---|---|---|"
\t@echo "| speed | >= 2 | 3.00 | yes |"; echo "By foot."
bench-bad:
\t@echo "Python 3.11.7, x86_64, 2 cores"; echo "not installed: a peer"
\t@echo "| measure | must reach | here | |"; echo "|---|---|---|---|"
\t@echo "| speed: uphill | >= 2 | 1.50 | NO |"; echo "| speed: downhill | >= 2 | 9.00 | yes |"
\t@echo "| speed: level | >= 2 |  | not measured |"
\t@echo "no {BENCHMARKS}/x, /usr/lib/y, /rest/v1/z on http://127.0.0.1:54321," >&2
\t@echo "see https://example.com/x" >&2; exit 3
chaos-good:
\t@echo "### storm, seed $(SEED)"; echo "| measure | must be | here | |"; echo "|---|---|---|---|"
\t@echo "| workers killed with SIGKILL | 40 | 40 | yes |"; echo "| jobs lost | 0 | 0 | yes |"
\t@echo "| restarts of REST | 5 | 5 | yes |"; echo "| duplicate deliveries |  | 7 |  |"
"""


class Evidence:
    """The runner, with three programs of a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._runner = import_module("evidence")
        self._directory = directory
        (directory / "Makefile").write_text(MAKEFILE, encoding="utf-8")

    def run(self, *targets: str, **given: str) -> bool:
        programs = [self._runner.Program(target=name, about=f"The {name}.") for name in TARGETS]
        chosen = [each for each in programs if each.target in targets]
        return self._runner.prove(programs, chosen, directory=self._directory, given=given)

    @property
    def page(self) -> str:
        return (self._directory / "BENCHMARKS.md").read_text(encoding="utf-8")

    def part(self, heading: str) -> str:
        return self.page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """The modules beside the benchmarks are found as `python evidence.py` finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture
def evidence(tmp_path) -> Evidence:
    return Evidence(tmp_path)


def test_what_was_missed_stands_on_top(evidence):
    """Bars, programs that failed and programs that were not run, with the command beside each."""
    assert not evidence.run("bench-outage", "bench-bad")
    told = evidence.part("Result")
    assert "- Bars met: 4 of 6." in told
    assert "- **Not measured: 1.**" in told
    assert "- **Ended with an error: `make bench-bad` (exit code 2).**" in told
    assert "- **Not run: `make bench-good`, `make chaos-good`.**" in told
    assert "| speed: uphill | >= 2 | 1.50 | `make bench-bad` |" in told
    assert "| speed: the worst of 2, uphill | >= 2 | 1.50 | NO | `make bench-bad` |" in told
    assert "| speed: level | >= 2 |  | not measured | `make bench-bad` |" in told
    assert "| naive retry: back to normal | never | never | yes | `make bench-outage` |" in told


def test_a_failed_program_is_told_with_its_last_words(evidence):
    """Without paths, ports and addresses; what the others printed is there all the same."""
    assert not evidence.run("bench-bad", "chaos-good")
    told = evidence.part("bench-bad")
    assert "    no tests/benchmarks/x, …/y, /rest/v1/z on http://127.0.0.1:PORT,\n" in told
    assert "    see (address)\n" in told
    assert "not installed: a peer\n\n| measure |" in told
    assert "x86_64, 2 cores" not in told
    assert "- Exit code: 0\n" in evidence.part("chaos-good")


def test_one_program_can_be_run_again(evidence):
    """Its section is replaced, with the options it had; those of the others stay as they are."""
    assert evidence.run("bench-good", "chaos-good", SEED="1")
    before = evidence.part("bench-good")
    assert evidence.run("chaos-good", SEED="2", ARGS="--jobs 3")
    assert before == evidence.part("bench-good")
    command = "`make chaos-good SEED=2 ARGS='--jobs 3'`"
    assert f"- Command: {command}\n" in evidence.part("chaos-good")
    row = "| storm, seed 2 | processes killed: 40, servers restarted: 5 | 0 | 7 |  | PASS: 3 of 3 |"
    assert f"{row} {command} |" in evidence.part("Result")
    assert "seed 1" not in evidence.page


def test_the_page_is_read_back_as_it_was_written(evidence):
    """It is all there is: nothing is kept beside it."""
    evidence.run(*TARGETS[1:])
    page = import_module("evidence_page")
    assert TARGETS[1:] == list(page.read(evidence.page))
    assert evidence.page == page.write(TARGETS, page.read(evidence.page))


def test_a_scenario_that_breaks_off_is_a_missed_line(monkeypatch, capsys):
    """The scenarios after it are played all the same."""
    monkeypatch.syspath_prepend(TESTS / "chaos")
    report = import_module("report")
    (line,) = report.played(lambda: int("ten"))
    assert not line.is_met
    assert "ValueError: invalid literal for int() with base 10: 'ten'" == line.here
    assert "Traceback" in capsys.readouterr().err


def test_each_command_of_the_page_can_be_run_again():
    """Every program is a target of the Makefile, and is given its ARGS."""
    for program in import_module("evidence").PROGRAMS:
        command = program.command({"ARGS": "--small"})
        told = subprocess.run(
            [*command, "--dry-run"], cwd=TESTS.parent, capture_output=True, text=True, check=True
        )
        assert "--small" in told.stdout, command


def test_each_count_of_the_summary_is_told_by_a_chaos_run():
    """A measure that is renamed would vanish from the summary without a word."""
    sources = (each.read_text(encoding="utf-8") for each in (TESTS / "chaos").glob("*.py"))
    texts = re.findall(r'"([^"\n]+)"', "\n".join(sources))
    measures = [re.sub(r"\{[^}]*\}", "x", text) for text in texts]
    for count in import_module("evidence_chaos").COUNTS:
        assert any(re.fullmatch(count.measure, each) for each in measures), count.measure
