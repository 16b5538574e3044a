"""A request's body on its way in: limited in bytes, in time and in memory, and decompressed.

`IncomingBody.receive` takes the place of ASGI's own, and `Leftovers` deal with the rest of a body that was refused.
It knows no API.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Protocol

from starlette.datastructures import Headers

from maas_ray.serve.api import refusals

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

UNCOUNTED = 64 * 1024
"""Bytes of each body that the budget does not count: HAProxy sends them at once, or not at all."""
DRAIN_SECONDS = 5.0
"""Longest time for which the rest of a refused body is read and dropped."""
_DRAINED, _DRAINED_PER_SECOND = 32_000_000, 8_000_000  # bytes of refused bodies: in a burst, and in the long run
_UNDECLARED = 16_000_000  # bytes that a body of unknown length takes of these
_BEGINNING, _BEGINNING_SECONDS = 256 * 1024, 0.5  # parts of the others that are read


def declared_length(headers: Headers) -> int:
    """A request's `Content-Length`, bytes. 0: it does not name it."""
    given = headers.get("content-length", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 20 else 0


class BodyBudget:
    """Bytes of large bodies that one process may hold at the same time.

    A large body takes its length from the budget before it arrives, so that those which are admitted can arrive. Small
    bodies take nothing, so that large ones which never end keep nobody else out.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit

    def take(self, count: int) -> bool:
        """Take bytes, if that many are left."""
        if count > self._free:
            return False
        self._free -= count
        return True

    def give_back(self, count: int) -> None:
        """Give bytes back."""
        self._free += count


def body_budget(count: int | None, body_limit: int) -> BodyBudget:
    """The budget of a process. None: eight bodies of the largest size."""
    return BodyBudget(8 * body_limit if count is None else count)


class Leftovers:
    """The rest of bodies that were refused, which clients still send.

    Many clients send everything before they read. Most read the answer when sending fails, but some, such as urllib,
    only report that it failed. So a refused body is read to its end and dropped, as long as such bodies are few. Of the
    others only the beginning is read, so that a flood of them costs next to nothing.
    """

    def __init__(self) -> None:
        self._free, self._at = float(_DRAINED), 0.0

    async def drop(self, receive: Receive, declared: int) -> None:
        """Read and drop the rest of a body, or its beginning.

        Args:
            receive: ASGI's.
            declared: see `declared_length`.
        """
        count = declared or _UNDECLARED
        left, seconds = (count, DRAIN_SECONDS) if self._take(count) else (_BEGINNING, _BEGINNING_SECONDS)
        more = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while more and left > 0:
                    message = await receive()
                    more = message.get("more_body", False)  # a client that is gone has no more either
                    left -= len(message.get("body", b""))
                if more:
                    # Closing now would break the connection, perhaps before a proxy has passed the answer on.
                    await asyncio.sleep(_BEGINNING_SECONDS)

    def _take(self, count: int) -> bool:
        now = asyncio.get_running_loop().time()
        self._free = min(_DRAINED, self._free + (now - self._at) * _DRAINED_PER_SECOND)
        self._at = now
        if count > self._free:
            return False
        self._free -= count
        return True


class IncomingBody:
    """The body of one request.

    Args:
        scope: of the request.
        receive: ASGI's.
        limit: largest body, bytes, compressed or not.
        budget: of this process.

    Raises:
        RequestError: the body's encoding is not supported.
    """

    def __init__(self, scope: Scope, receive: Receive, *, limit: int, budget: BodyBudget) -> None:
        headers = Headers(scope=scope)
        self._declared = declared_length(headers)
        self._decoder = _decoder(headers.get("content-encoding", ""))
        self._receive, self._limit, self._budget = receive, limit, budget
        self._size, self._taken = 0, 0
        self._deadline = asyncio.get_running_loop().time() + refusals.BODY_SECONDS
        self.complete = False
        """True once the last byte has arrived."""

    async def receive(self) -> Message:
        """The next message.

        Raises:
            RequestError: the body is too large, as soon as that is known; it takes too long; this process holds too
                many large bodies; or it is not encoded as it says.
        """
        if self.complete:
            return await self._receive()
        self._admit(self._declared)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise refusals.body_too_slow() from error
        if message["type"] != "http.request":
            return message
        self.complete = not message.get("more_body", False)
        data = message.get("body", b"")
        if self._decoder is not None:
            data = self._decoder.decode(data, self._limit - self._size + 1)
            if self.complete:
                self._decoder.finish()
        self._size += len(data)
        self._admit(self._size)
        return {"type": "http.request", "body": data, "more_body": not self.complete}

    def _admit(self, size: int) -> None:
        """Take what a body of this size needs."""
        if size > self._limit:
            raise refusals.body_too_large(self._limit)
        more = size - UNCOUNTED - self._taken
        if more > 0:
            if not self._budget.take(more):
                raise refusals.too_many_bodies()
            self._taken += more

    def release(self) -> None:
        """Give back what the body took: it is no longer in memory, or soon will not be."""
        self._budget.give_back(self._taken)
        self._taken = 0


class _Decoder(Protocol):
    def decode(self, data: bytes, limit: int) -> bytes:
        """The next bytes; stops when there are more than the limit."""

    def finish(self) -> None:
        """Check that the body is complete."""


def _decoder(encoding: str) -> _Decoder | None:
    """The decoder for a `Content-Encoding`. None: the bytes are the body."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in ENCODINGS:
        raise refusals.unsupported_encoding(encoding, ENCODINGS)
    return _Zlib(name)


ENCODINGS = ("gzip", "deflate")
"""The supported values of `Content-Encoding`."""


class _Zlib:
    """Decodes gzip, of one member or several, and deflate, with or without zlib's header."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._inflate: Any = None

    def decode(self, data: bytes, limit: int) -> bytes:
        pieces = []
        while data and limit > 0:
            if self._inflate is None or (self._inflate.eof and self._encoding == "gzip"):
                self._inflate = zlib.decompressobj(self._window(data))
            try:
                piece = self._inflate.decompress(data, limit)
            except zlib.error as error:
                raise refusals.invalid_encoding(self._encoding) from error
            pieces.append(piece)
            limit -= len(piece)
            data = self._inflate.unconsumed_tail or self._inflate.unused_data
            if data and self._inflate.eof and self._encoding == "deflate":
                raise refusals.invalid_encoding(self._encoding)
        return b"".join(pieces)

    def finish(self) -> None:
        if self._inflate is not None and not self._inflate.eof:
            raise refusals.invalid_encoding(self._encoding)

    def _window(self, data: bytes) -> int:
        if self._encoding == "gzip":
            return 16 + zlib.MAX_WBITS
        # RFC 1950's header says 8 for its method. Some clients leave the header out, which the RFC of HTTP mentions.
        return zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS
