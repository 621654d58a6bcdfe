"""An event loop that a listener has to itself: when it ends, no connection made on it is left."""

import asyncio
import weakref
from typing import Any

__all__ = ["OwnLoop"]


class OwnLoop(asyncio.SelectorEventLoop):
    """Run it on a thread; `end()` cancels what is left on it and hangs up.

    realtime-py has no way to hang up on a server that does not answer a goodbye, and a loop that is
    closed before the answer would leave the socket open.
    """

    def __init__(self) -> None:
        super().__init__()
        self._connections: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        """As usual, and remembered."""
        transport, protocol = await super().create_connection(*args, **options)
        self._connections.add(transport)
        return transport, protocol

    def end(self) -> None:
        """Cancel, hang up, close; called on its thread after `run_forever()`."""
        self.run_until_complete(self._end())
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()

    async def _end(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}  # timers of realtime-py
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for transport in list(self._connections):
            transport.abort()
        # What was aborted is closed in the loop's next round.
        await asyncio.sleep(0)
