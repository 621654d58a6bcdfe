"""What is left of a loop that a sync listener had to itself: nothing."""

import asyncio
import socket
import threading

from supabase_resilience.listener._own_loop import OwnLoop


def test_a_server_that_never_hangs_up_keeps_no_connection():
    """The socket is closed with the loop, though nobody said goodbye."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        loop = OwnLoop()
        address = server.getsockname()
        transport, _ = loop.run_until_complete(loop.create_connection(asyncio.Protocol, *address))
        ours = transport.get_extra_info("socket")
        connection, _ = server.accept()
        with connection:
            loop.end()
            assert b"" == connection.recv(1)
        assert ours.fileno() == -1


def test_a_task_that_is_left_is_canceled():
    """It hears of the end before the loop is closed."""
    heard = threading.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            heard.set()

    loop = OwnLoop()
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.end()
    assert heard.is_set()
    assert task.cancelled()
    assert loop.is_closed()
