"""The control protocol: JSON lines from the owner on stdin, answers on stdout.

A thread reads stdin, since an event loop cannot do that on every platform. When stdin ends the
owner is gone, and so is this process, whatever it was doing.
"""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

JsonObject = dict[str, Any]


class Control:
    """The line to the owner of this process."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[JsonObject] = asyncio.Queue()
        reader = threading.Thread(
            target=self._read, args=(asyncio.get_running_loop(),), daemon=True
        )
        reader.start()

    async def receive(self) -> JsonObject:
        """Return the next object that the owner sends."""
        return await self._lines.get()

    def send(self, message: JsonObject) -> None:
        """Tell the owner something."""
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        for line in _raw_lines(sys.stdin.fileno()):
            loop.call_soon_threadsafe(self._lines.put_nowait, json.loads(line))
        os._exit(0)


def _raw_lines(descriptor: int) -> Iterator[bytes]:
    """Read lines past Python's own buffer, whose lock would hold up the end of the process."""
    rest = b""
    while chunk := os.read(descriptor, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
