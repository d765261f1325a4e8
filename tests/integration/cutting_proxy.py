"""A TCP proxy that cuts connections just when an answer comes, or in the middle of what is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from atoll.model.address import Address


class CuttingProxy:
    """Passes everything on until it is told to cut."""

    def __init__(self, to: Address) -> None:
        self._to = to
        self._cut: int | None = None
        self._outage: int | None = None
        self._struck = False
        self.cuts = 0
        self._connections: set[asyncio.Task[Any]] = set()

    def cut_answer_of(self, request_bytes: int) -> None:
        """Once a connection has asked for so many bytes more, its next answer is lost with it."""
        self._cut = request_bytes

    def begin_outage(self, request_bytes: int) -> None:
        """Once a connection has asked for so many bytes more, nothing passes any more, not even the last of them."""
        self._outage, self._struck = request_bytes, False

    def end_outage(self) -> None:
        """All is well again."""
        self._outage, self._struck = None, False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            if not self._struck:
                there_reader, there_writer = await asyncio.open_connection(self._to.host, self._to.port)
                try:
                    await self._pass_on(reader, writer, there_reader, there_writer)
                finally:
                    there_writer.transport.abort()
        finally:
            writer.transport.abort()
            self._connections.discard(connection)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there_reader: asyncio.StreamReader,
        there_writer: asyncio.StreamWriter,
    ) -> None:
        asked = 0

        async def ask() -> None:
            nonlocal asked
            while data := await reader.read(65_536):
                if self._cut is not None or self._outage is not None:
                    asked += len(data)
                if self._struck or (self._outage is not None and asked >= self._outage):
                    self._struck = True
                    self.cuts += 1
                    return
                there_writer.write(data)
                await there_writer.drain()

        async def answer() -> None:
            while data := await there_reader.read(65_536):
                if self._cut is not None and asked >= self._cut:
                    self._cut = None
                    self.cuts += 1
                    return
                writer.write(data)
                await writer.drain()

        tasks = {asyncio.create_task(ask()), asyncio.create_task(answer())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def end(self) -> None:
        """Close what is open."""
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0)  # in which what was aborted is closed


@asynccontextmanager
async def cutting_proxy(to: Address) -> AsyncIterator[tuple[CuttingProxy, Address]]:
    """A proxy, and where it listens."""
    proxy = CuttingProxy(to)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    try:
        yield proxy, Address(host="127.0.0.1", port=port)
    finally:
        server.close()
        await proxy.end()
