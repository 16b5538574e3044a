"""Rows of a file that is one JSON array, cut apart without parsing them: `[{"text": "a"}, {"text": "b"}]`.

Only brackets, commas and strings are searched for, so memory holds one row and a stretch of the file. A row that is not
JSON costs itself alone if its brackets and quotes are paired.
"""

import codecs
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from maas_ray.data.sources.base import EXCERPT_BYTES, MAX_BYTES
from maas_ray.data.sources.compressed import Content

_HEAD_BYTES, _STRETCH = 1 << 12, 1 << 18
_OPENING = re.compile(rb"\s*\[\s*(?:\{|\]\s*$|$)")
# The group is empty if the string goes on after the bytes that are held, a backslash at their end included.
_SIGN = re.compile(rb'[\[\]{},]|"(?:[^"\\]++|\\.)*+("?)', re.DOTALL)


class Place(NamedTuple):
    """Bytes and rows before a row."""

    byte: int
    row: int


class Text(NamedTuple):
    """The bytes of a row; or the beginning of an unreadable one, with its error.

    `rest` is true if the error stands for the rest of the file.
    """

    place: Place
    content: bytes
    error: str = ""
    rest: bool = False


def is_array(content: Content) -> bool:
    """True if a file begins with an array of objects, or is an empty array. Its position is the beginning again."""
    head = content.read(_HEAD_BYTES)
    content.seek(0)
    return _OPENING.match(head.removeprefix(codecs.BOM_UTF8)) is not None


def elements(content: Content, place: Place, digest: Any = None) -> Iterator[Text]:
    """The elements of an array, from a place on. Damage counts as one element, the last.

    Args:
        content: the file, positioned at the place.
        place: the byte after the comma before an element, or the beginning of the file.
        digest: updated with every byte.
    """
    byte, row = place  # position in the file of the first byte that is held; elements before the next one
    held, start, scanned, depth = b"", 0, 0, 0 if byte else -1
    error = ""
    while not error:
        before = len(held) - start
        held, byte, scanned, start = held[start:] + _next(content, before, digest), byte + start, scanned - start, 0
        if len(held) == before:
            error = content.damage or "the array does not end; the file may have been cut off"
        for sign in _SIGN.finditer(held, scanned):
            if sign.lastindex and not sign[1]:
                scanned = sign.start()
                break
            kind = b"" if sign.lastindex else sign[0]
            if kind in (b"]", b",") and not depth:
                if element := held[start : sign.start()].strip():
                    yield Text(Place(byte + start, row), element)
                    row += 1
                start = sign.end()
                if kind == b"]":
                    yield from _after(content, Place(byte + start, row), held[start:], digest)
                    return
            elif kind in (b"[", b"{"):
                depth += 1
                start = start if depth else sign.end()
            elif kind in (b"]", b"}"):
                depth = max(depth - 1, 0)
        else:
            scanned = len(held)
        if len(held) - start > MAX_BYTES:
            error = f"a row of more than {MAX_BYTES / 1e6:.0f} MB"
    yield _rest(content, Place(byte + start, row), held[start:], error, digest)


def _next(content: Content, held: int, digest: Any) -> bytes:
    """The next bytes. A long string is scanned again from its beginning, so stretches grow with what is held."""
    more = content.read(max(_STRETCH, held))
    if digest is not None:
        digest.update(more)
    return more


def _after(content: Content, place: Place, held: bytes, digest: Any) -> Iterator[Text]:
    """An error if anything follows the array."""
    while not (head := held.strip()) and (held := _next(content, 0, digest)):
        pass
    if head or content.damage:
        error = "the array ends, but the file goes on; write one array, or an object on each line"
        yield _rest(content, place, head, content.damage or error, digest)


def _rest(content: Content, place: Place, head: bytes, error: str, digest: Any) -> Text:
    """The error that stands for the rest of the file."""
    while digest is not None and _next(content, 0, digest):
        pass
    if content.damage and digest is not None:
        digest.update(content.damage.encode())
    return Text(place, head.strip()[:EXCERPT_BYTES], error, rest=True)
