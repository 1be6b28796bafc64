"""A loop that goes on while somebody has replaced `contextvars.copy_context`, and is in the context that it gives."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from pytest_pgdbm.connections.contexts import LoopWithOwnContexts
from pytest_pgdbm.connections.loop import PrivateLoop


async def all_kinds() -> list[str]:
    """What waits for each kind of callback."""
    loop = asyncio.get_running_loop()
    done: list[str] = []
    await asyncio.gather(*(asyncio.ensure_future(asyncio.sleep(delay)) for delay in (0, 0.001)))
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    soon, safe = loop.create_future(), loop.create_future()
    loop.call_soon(soon.set_result, "soon")
    loop.call_soon_threadsafe(safe.set_result, "from any thread")
    done += [await soon, await safe, await loop.run_in_executor(None, str, "in an executor")]
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    large = b"x" * 5_000_000  # which is not written at once
    writer.write(large)
    writer.write_eof()
    done.append((await asyncio.wait_for(reader.read(), 30)).decode())
    writer.close()
    server.close()
    return done


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"{len(await reader.read())} over a socket".encode())
    writer.close()


ALL = ["soon", "from any thread", "in an executor", "5000000 over a socket"]


def test_no_callback_is_given_a_context_that_somebody_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[str]:
        monkeypatch.setattr(contextvars, "copy_context", lambda: entered)
        monkeypatch.setattr(asyncio.tasks, "Task", asyncio.tasks._PyTask)  # type: ignore[attr-defined]
        loop = LoopWithOwnContexts()
        try:
            return loop.run_until_complete(all_kinds())
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    entered = contextvars.copy_context()
    assert entered.run(run) == ALL


def test_the_private_loop_goes_on_while_tests_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pytest-asyncio's backport for Python 3.10 begins them; later Pythons can begin them otherwise, and do."""
    private = PrivateLoop()
    mine = contextvars.copy_context()

    def begin() -> None:
        with monkeypatch.context() as patched:
            if isinstance(private._loop, LoopWithOwnContexts):
                patched.setattr(contextvars, "copy_context", lambda: mine)
                patched.setattr(asyncio.tasks, "Task", asyncio.tasks._PyTask)  # type: ignore[attr-defined]
            assert private.run(all_kinds()) == ALL

    try:
        mine.run(begin)
    finally:
        private.close()
