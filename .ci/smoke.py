"""Smoke test of an installed wheel: import, types, commands, and the first example, end to end."""

import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import supabase_resilience


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


def main(checkout: Path) -> None:
    package = Path(supabase_resilience.__file__).parent
    assert checkout not in package.parents, f"this is the checkout, not the wheel: {package}"
    assert (package / "py.typed").is_file()
    assert version("supabase-resilience") == supabase_resilience.__version__
    assert any(entry.name == "supabase_resilience" for entry in entry_points(group="pytest11"))
    assert run("-m", "supabase_resilience", "--version").strip() == supabase_resilience.__version__
    told = run("01_survive_an_outage.py")
    for fact in ("circuit.opened", "circuit.half_opened", "circuit.closed"):
        assert fact in told, told
    print("the installed wheel works")


main(Path(sys.argv[1]))
