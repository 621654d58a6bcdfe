"""A child process that speaks the control protocol: JSON lines over its stdin and stdout.

The pipe does double duty: it carries the owner's commands, and its end tells the child that the
owner is gone. One thread reads the answers, so that waiting for one can have a time limit.
"""

import json
import os
import queue
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from supabase_resilience.local._errors import LocalSupabaseError
from supabase_resilience.local._node import Command

START_TIMEOUT = 60.0  # seconds; generous, because a busy machine is no reason to fail
ANSWER_TIMEOUT = 30.0


class Child:
    """A running part of the stack. It answers one command at a time and ends with its owner.

    Raises `LocalSupabaseError` with the child's own words when it cannot start.
    """

    def __init__(
        self, name: str, command: Command, config: Mapping[str, Any], *, log: Path
    ) -> None:
        self.name = name
        self._log = log
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._last_id = 0
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._process = _spawn(command, log)
        threading.Thread(target=self._read, name=f"{name} answers", daemon=True).start()
        self.port: int = self._start(config)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process.poll() is None

    def ask(self, do: str, *, timeout: float = ANSWER_TIMEOUT, **arguments: Any) -> Any:
        """Have the child carry out a command; returns its result.

        Raises `LocalSupabaseError` when the child refuses, is gone, or takes more than `timeout`
        seconds.
        """
        check_owner(self._owner)
        with self._lock:
            self._last_id += 1
            self._write({"id": self._last_id, "do": do, **arguments})
            answer = self._answer(self._last_id, timeout)
        if "error" in answer:
            raise LocalSupabaseError(f"{self.name} refused {do!r}: {answer['error']}")
        return answer.get("ok")

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash would."""
        check_owner(self._owner)
        self._process.kill()
        self._process.wait()
        self._close_stdin()

    def stop(self) -> None:
        """End the process in order: the end of its stdin tells it to exit; killed if it stays."""
        check_owner(self._owner)
        self._close_stdin()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()

    def _start(self, config: Mapping[str, Any]) -> int:
        try:
            self._write(config)
            first = self._next(START_TIMEOUT)
        except BaseException:
            self.kill()
            raise
        if "error" in first:
            self.kill()
            raise LocalSupabaseError(f"{self.name} did not start: {first['error']}")
        return int(first["ready"]["port"])

    def _write(self, message: Mapping[str, Any]) -> None:
        try:
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()
        except (OSError, ValueError):
            raise self._gone() from None

    def _answer(self, wanted: int, timeout: float) -> dict[str, Any]:
        while True:
            answer = self._next(timeout)
            if answer.get("id") == wanted:  # else it is the late answer to one that timed out
                return answer

    def _next(self, timeout: float) -> dict[str, Any]:
        try:
            message = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise LocalSupabaseError(
                f"{self.name} did not answer within {timeout:g} s{last_lines(self._log)}"
            ) from None
        if message is None:
            self._answers.put(None)  # it holds for whoever asks next, too
            raise self._gone()
        return message

    def _read(self) -> None:
        if (stdout := self._process.stdout) is not None:
            with stdout:
                for line in stdout:
                    self._answers.put(json.loads(line))
        self._answers.put(None)

    def _gone(self) -> LocalSupabaseError:
        return LocalSupabaseError(f"{self.name} is not running{last_lines(self._log)}")

    @property
    def _stdin(self) -> IO[bytes]:
        if self._process.stdin is None:
            raise self._gone()
        return self._process.stdin

    def _close_stdin(self) -> None:
        with suppress(OSError):  # unsent bytes for a process that is gone
            self._stdin.close()


def check_owner(owner: int) -> None:
    """Raise `LocalSupabaseError` in a fork, which shares the owner's pipes and its answers."""
    if os.getpid() != owner:
        raise LocalSupabaseError(
            f"this LocalSupabase is controlled by process {owner}, of which this one is a fork; use"
            " its url and keys here, but control it from there"
        )


def _spawn(command: Command, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stderr:
        return subprocess.Popen(
            command.argv,
            cwd=command.cwd,
            env=command.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for the owner, which ends its children in order
        )


def last_lines(log: Path, count: int = 8) -> str:
    """Return the end of a log, ready to be appended to a sentence; empty when it is empty."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    except OSError:
        return ""
    return "; its last words:\n  " + "\n  ".join(lines) if lines else ""
