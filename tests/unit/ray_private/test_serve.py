"""Serve reads a request's body no further ahead of a busy application than a megabyte, and loses none of it."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy

from maas_ray.ray_private.serve import bound_read_ahead

CHUNK = bytes(50_000)
CHUNKS = 400


class Client:
    """Sends twenty megabytes as fast as the server takes them, and leaves once they are read."""

    sent, read = 0, False

    async def receive(self) -> dict[str, object]:
        await asyncio.sleep(0)
        self.sent += 1
        if self.sent > CHUNKS:
            # Serve may report that a client has left before the last that it sent.
            while not self.read:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": CHUNK, "more_body": self.sent < CHUNKS}


@pytest.fixture
def application() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop of the application, in a thread of its own, as Serve has it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_a_busy_application_holds_a_megabyte_at_most_and_gets_everything(
    application: asyncio.AbstractEventLoop,
) -> None:
    bound_read_ahead()
    bound_read_ahead()  # as for each application that a process builds
    client, free = Client(), threading.Event()
    application.call_soon_threadsafe(free.wait)

    async def read(proxy: ASGIDIReceiveProxy) -> int:
        size, more = 0, True
        while more:
            message = await proxy()
            size += len(message["body"])
            more = message["more_body"]
        client.read = True
        assert (await proxy())["type"] == "http.disconnect"
        return size

    async def serve() -> tuple[int, int]:
        proxy = ASGIDIReceiveProxy({"type": "http"}, client.receive, application)
        reading = proxy.fetch_until_disconnect_task()
        while client.sent <= 1_000_000 // len(CHUNK):
            await asyncio.sleep(0.01)
        for _ in range(10):
            await asyncio.sleep(0.01)
        ahead = client.sent
        free.set()
        size = asyncio.run_coroutine_threadsafe(read(proxy), application)
        await asyncio.wait_for(reading, 10)
        return ahead, await asyncio.wrap_future(size)

    ahead, size = asyncio.run(serve())
    assert ahead * len(CHUNK) <= 1_000_000 + len(CHUNK)
    assert size == CHUNKS * len(CHUNK)
