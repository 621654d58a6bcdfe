"""The process that cleans up after an owner that died without stopping its stack.

PostgreSQL outlives whoever started it, so a crash or `kill -9` of the owner would leave it running.
This file is run by path as a process of its own, outside the package, so it uses the standard
library alone. It recognises what belongs to a stack by the stack's unique name, which stands in
every command line and process title: nothing can slip through between the start of a process and
the moment its number would have been written down.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

POLL = 0.5  # seconds between two looks at the owner
GIVE_UP = 30.0  # seconds to spend on what does not want to end

# --- Processes ----------------------------------------------------------------------------------


class Process(NamedTuple):
    """A running process (never a zombie) as the operating system lists it."""

    pid: int
    parent: int
    arguments: list[str]


def processes() -> Iterator[Process]:
    """List what runs on this machine."""
    return _from_proc() if Path("/proc/self/stat").exists() else _from_ps()


def _from_proc() -> Iterator[Process]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            # A process may end, or be another user's, between two reads.
            with suppress(OSError):
                stat = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                state, parent = stat.rpartition(")")[2].split()[:2]
                if state not in {"Z", "X"}:
                    command = Path(entry.path, "cmdline").read_bytes().decode(errors="replace")
                    yield Process(int(entry.name), int(parent), command.rstrip("\0").split("\0"))


def _from_ps() -> Iterator[Process]:
    listing = subprocess.run(
        ["/bin/ps", "-axww", "-o", "pid=,ppid=,stat=,command="],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in listing.stdout.splitlines():
        pid, parent, state, command = line.split(None, 3)
        if not state.startswith("Z"):
            yield Process(int(pid), int(parent), command.split())


def kill_with_descendants(pid: int) -> None:
    """Kill a process and everything below it with SIGKILL; returns when all of that is gone.

    The process itself may stay a zombie until its parent has asked for its exit code.
    """
    # A stopped process forks no more, so the list of its descendants is complete.
    _signal(pid, signal.SIGSTOP)
    family = {pid, *_descendants(pid)}
    for member in family:
        _signal(member, signal.SIGKILL)
    _wait_for_end(family)


def _descendants(pid: int) -> set[int]:
    parents = {process.pid: process.parent for process in processes()}
    found: set[int] = set()
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level} - found
        found |= level
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _wait_for_end(pids: set[int]) -> None:
    end = time.monotonic() + GIVE_UP
    while pids & {process.pid for process in processes()} and time.monotonic() < end:
        time.sleep(0.01)


# --- What a stack leaves behind -----------------------------------------------------------------


def remove_shared_memory(data_directory: Path) -> None:
    """Remove the System V segment of a killed PostgreSQL; an orderly stop removes it by itself."""
    with suppress(OSError, ValueError, IndexError):
        # The seventh line of postmaster.pid: key and id of the segment.
        lines = (data_directory / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        segment = int(lines[6].split()[1])
        ipc_rmid = 0
        ctypes.CDLL(None).shmctl(segment, ipc_rmid, None)


def belongs_to(directory: Path, process: Process) -> bool:
    """Tell whether a process is part of the stack that lives in this directory."""
    # The start of a backend's title is its server's name; a database's name comes later, and ours
    # may be on a server that is not.
    if " ".join(process.arguments).startswith(f"postgres: {directory.name}: "):
        return True
    marks = {f"--stack={directory.name}", str(directory / "data")}
    return not marks.isdisjoint(process.arguments)


def end_stack(directory: Path) -> None:
    """Kill what is left of the stack in this directory, then remove the directory."""
    end = time.monotonic() + GIVE_UP
    while directory.exists() and time.monotonic() < end:
        left = [process for process in processes() if belongs_to(directory, process)]
        for process in left:
            kill_with_descendants(process.pid)
        remove_shared_memory(directory / "data")
        if not left:
            shutil.rmtree(directory, ignore_errors=True)
        # A process that was just being started shows its command line a moment later.
        time.sleep(0.1)


# --- The owner's end ----------------------------------------------------------------------------


class Guardian:
    """The owner's handle on its guardian.

    What it is told is done when the owner is gone, unless `dismiss` came first.
    """

    def __init__(self) -> None:
        # Without the owner's stdout and stderr: who reads those to their end must not wait for it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def watch(self, directory: Path) -> None:
        """Entrust a stack's directory, before it exists, with everything that bears its name."""
        self._tell({"directory": str(directory)})

    def on_crash(self, run: list[str], stdin: str) -> None:
        """Entrust a command to run after a crash, when the stack's processes are gone."""
        self._tell({"run": run, "stdin": stdin})

    def dismiss(self) -> None:
        """Let it go; returns when it has removed what is left of a watched directory, and ended."""
        self._tell({"done": True})
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._process.wait()

    def _tell(self, message: dict[str, Any]) -> None:
        # A guardian that somebody killed is no reason to fail: the owner cleans up by itself.
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()


# --- The process --------------------------------------------------------------------------------


def main() -> None:
    """Wait for the end of the owner, then end what it was responsible for."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of the owner ends the guardian
    said = _read_until_owner_ends(owner=int(sys.argv[1]))
    # A line is shorter than what a pipe takes at once, so each one is whole.
    messages = [json.loads(line) for line in said.splitlines()]
    for message in messages:
        if "directory" in message:
            end_stack(Path(message["directory"]))
    if not any("done" in message for message in messages):
        for message in messages:
            if "run" in message:
                _run(message["run"], message["stdin"])


def _read_until_owner_ends(owner: int) -> bytes:
    """Collect what the owner says; the end of the pipe or of the owner ends it."""
    said = b""
    while os.getppid() == owner:
        # A fork of the owner may hold the pipe open after the owner's end, hence the looks at it.
        if _readable(POLL):
            if not (chunk := os.read(0, 65536)):
                return said
            said += chunk
    while _readable(0) and (chunk := os.read(0, 65536)):
        said += chunk
    return said


def _readable(timeout: float) -> bool:
    return bool(select.select([0], [], [], timeout)[0])


def _run(arguments: list[str], stdin: str) -> None:
    subprocess.run(
        arguments,
        input=stdin,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=60,
    )


if __name__ == "__main__":
    main()
