"""Replicas behind real sockets, for tests of the gateway's relay."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn

from maas_ray.serve.api.middleware import App

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Upstream:
    """A replica, as `api.relay` sees it."""

    def __init__(self, url: str, secret: str = "s3cret") -> None:
        self.url, self.secret = url, secret
        self.in_flight, self.avoided = 0, 0

    def avoid(self) -> None:
        self.avoided += 1


class Scripted:
    """A server that answers each request with the next of these functions, over the bare connection.

    Attributes:
        asked: heads and bodies of the requests.
        left: clients that closed their connection while it answered.
    """

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, bytes]] = []
        self.left = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            self.asked.append((head, await reader.readexactly(int(fields["content-length"]))))
            answering = asyncio.create_task(self._answers.pop(0)(writer))
            gone = asyncio.create_task(reader.read(1))
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            self.left += gone.done() and not answering.done()
            answering.cancel()
            gone.cancel()
        finally:
            writer.close()


@asynccontextmanager
async def scripted(*answers: Answer) -> AsyncIterator[tuple[Scripted, Upstream]]:
    """A server of this kind, on loopback."""
    server = Scripted(*answers)
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        yield server, Upstream(f"http://127.0.0.1:{port}")


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[str]:
    """The URL of an application under Uvicorn, the server of Serve's replicas."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def answer(status: str, body: bytes, *headers: str, marked: bool = True) -> Answer:
    """A complete answer; `marked` by the application, or Serve's own."""

    async def write(writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
        writer.write("\r\n".join([*lines, *["x-maas-relay: 1"] * marked, "", ""]).encode() + body)
        await writer.drain()

    return write


def stream(*pieces: bytes | float, ends: bool = True) -> Answer:
    """A stream of server-sent events; numbers are pauses in seconds. Without `ends`, the connection breaks."""

    async def write(writer: asyncio.StreamWriter) -> None:
        head = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked", "x-maas-relay: 1"]
        writer.write("\r\n".join([*head, "", ""]).encode())
        for piece in pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                await writer.drain()
        if ends:
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    return write


async def dies(writer: asyncio.StreamWriter) -> None:
    """The replica ends before it answers."""
