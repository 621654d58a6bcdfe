"""A child process and its owner: what passes between them, and what happens when either is gone."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supabase_resilience.local._child import Child
from supabase_resilience.local._errors import LocalSupabaseError
from supabase_resilience.local._node import Command

ECHO = """
import json, sys
print(json.dumps({"ready": {"port": json.loads(sys.stdin.readline())["port"]}}), flush=True)
late = []
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "hold":
        late.append(command["id"])
    elif command["do"] == "fail":
        print(json.dumps({"id": command["id"], "error": "no such thing"}), flush=True)
    elif command["do"] == "die":
        sys.exit("I am leaving")
    else:
        for each in late:
            print(json.dumps({"id": each, "ok": "late"}), flush=True)
        late.clear()
        print(json.dumps({"id": command["id"], "ok": command["word"]}), flush=True)
"""

Spawn = Callable[[str], Child]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Return a function that starts a Python program as a child."""
    started: list[Child] = []

    def start(program: str) -> Child:
        command = Command([sys.executable, "-c", program], tmp_path, dict(os.environ))
        started.append(Child("echo", command, {"port": 4711}, log=tmp_path / "echo.log"))
        return started[-1]

    yield start
    for child in started:
        child.stop()


def test_ready_port(spawn: Spawn) -> None:
    """A child tells the port on which it listens when it is ready."""
    assert 4711 == spawn(ECHO).port


def test_answer(spawn: Spawn) -> None:
    """A command's result comes back to whoever asked."""
    assert "hello" == spawn(ECHO).ask("say", word="hello")


def test_refusal(spawn: Spawn) -> None:
    """A command that the child refuses raises its own words, and the child goes on."""
    child = spawn(ECHO)
    with pytest.raises(LocalSupabaseError, match="echo refused 'fail': no such thing"):
        child.ask("fail")
    assert "still here" == child.ask("say", word="still here")


def test_late_answer_is_not_mistaken(spawn: Spawn) -> None:
    """An answer that comes after its time limit is not taken for the next command's answer."""
    child = spawn(ECHO)
    with pytest.raises(LocalSupabaseError, match="did not answer within"):
        child.ask("hold", timeout=0.01)
    assert "mine" == child.ask("say", word="mine")


def test_child_that_dies(spawn: Spawn) -> None:
    """A child that dies under a command raises its last words; the caller does not wait."""
    child = spawn(ECHO)
    with pytest.raises(LocalSupabaseError, match=r"(?s)echo is not running.*I am leaving"):
        child.ask("die")
    with pytest.raises(LocalSupabaseError, match="echo is not running"):
        child.ask("say", word="anything")


def test_start_refused(spawn: Spawn) -> None:
    """A child that says why it cannot start is quoted."""
    refusal = (
        'import sys; sys.stdin.readline(); print(\'{"error": "the port is in use"}\', flush=True)'
    )
    with pytest.raises(LocalSupabaseError, match="echo did not start: the port is in use"):
        spawn(refusal)


def test_crash_at_start(spawn: Spawn) -> None:
    """A child that crashes before it is ready is reported with the end of its log."""
    with pytest.raises(LocalSupabaseError, match=r"(?s)echo is not running.*ZeroDivisionError"):
        spawn("1 / 0")


def test_kill(spawn: Spawn) -> None:
    """A killed child is gone when `kill` returns."""
    child = spawn(ECHO)
    child.kill()
    assert not child.running


def test_stop_ends_stdin(spawn: Spawn, tmp_path: Path) -> None:
    """The end of its stdin is what ends a child in order: it gets to do its last work."""
    child = spawn(ECHO + "\nopen('ended', 'w').close()")
    child.stop()
    assert not child.running
    assert (tmp_path / "ended").exists()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork_may_not_command(spawn: Spawn) -> None:
    """A fork of the owner is refused: it shares the pipes, and would steal the owner's answers."""
    child = spawn(ECHO)
    reader, writer = os.pipe()
    fork = os.fork()
    if fork == 0:
        try:
            child.ask("say", word="from the fork")
        except LocalSupabaseError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert f"controlled by process {os.getpid()}" in said.read()
    os.waitpid(fork, 0)
    assert "mine" == child.ask("say", word="mine")
