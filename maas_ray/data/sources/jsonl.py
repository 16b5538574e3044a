"""`format: jsonl`: JSON lines, one object on each line."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any, ClassVar, Literal, NamedTuple

from maas_ray.data.sources.base import EXCERPT_BYTES, MAX_BYTES, Inspected, Raw
from maas_ray.data.sources.compressed import Content, codec, opened, usual
from maas_ray.data.sources.files import Files
from maas_ray.data.sources.table import Table, chosen, missing
from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import REST, Row

_GROUP_BYTES = 4 << 20


class JsonlSource(Table, Files):
    """`{format: jsonl, path: notes.jsonl, text: body}`: one JSON object on each line. Files may be compressed."""

    format: Literal["jsonl"] = "jsonl"
    """Name of the format."""
    usual: ClassVar[tuple[str, ...]] = usual("*.jsonl", "*.ndjson")

    def look(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        digest, keys = sha256(), None
        groups: list[int] = []
        places: list[_Place] = []
        with opened(inspected.file.uri) as content:
            for line in _lines(content, _Place(0, 0), digest):
                if not places or line.place.byte - places[-1].byte >= _GROUP_BYTES:
                    places.append(line.place)
                    groups.append(0)
                groups[-1] += 1
                keys = keys or (None if line.error else _keys(line.content))
        if keys is not None and (problem := missing(inspected.file.uri, mapping, keys)):
            return replace(inspected, problem=problem)
        inspected = replace(inspected, sha256=digest.hexdigest(), rows=sum(groups))
        return (
            inspected if codec(inspected.file.uri) else replace(inspected, groups=tuple(groups), places=tuple(places))
        )

    def records(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        uri, start, left = inspected.file.uri, _Place(0, 0), inspected.rows
        if groups is not None and inspected.groups:
            start, left = inspected.places[groups.start], sum(inspected.groups[group] for group in groups)
        with opened(uri) as content:
            content.seek(start.byte)
            for _, line in zip(range(left), _lines(content, start), strict=False):
                number, excerpt = line.place.line + 1, line.content[:EXCERPT_BYTES]
                try:
                    yield Raw(uri, number, chosen(_object(line, mapping), mapping), excerpt=excerpt)
                except json.JSONDecodeError as error:
                    yield Raw(uri, number, error=f"not JSON: {error.msg}", excerpt=excerpt)
                except (ValueError, RecursionError) as error:
                    yield Raw(uri, number, error=str(error), excerpt=excerpt)


class _Place(NamedTuple):
    """Bytes and lines before a line."""

    byte: int
    line: int


class _Line(NamedTuple):
    """A line that is not blank; or the beginning of an unreadable one, with its error."""

    place: _Place
    content: bytes
    error: str = ""


def _lines(content: Content, place: _Place, digest: Any = None) -> Iterator[_Line]:
    """The lines of a file from its position on, which is `place`. Damage counts as one line, the last."""
    while line := content.readline(MAX_BYTES + 1):
        head, size, error = line, len(line), ""
        if digest is not None:
            digest.update(line)
        if not place.byte and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            error = "the file is UTF-16; convert it: iconv -f UTF-16 -t UTF-8"
        elif content.damage and not line.endswith(b"\n"):
            break  # only the beginning of a line
        elif size > MAX_BYTES:
            error = f"a line of more than {MAX_BYTES / 1e6:.0f} MB"
            head = line[:EXCERPT_BYTES]
            while not line.endswith(b"\n") and (line := content.readline(1 << 20)):
                size += len(line)
                if digest is not None:
                    digest.update(line)
        if error or not line.isspace():
            yield _Line(place, head, error)
        if error.startswith("the file"):
            while digest is not None and (line := content.read(1 << 20)):
                digest.update(line)
            return
        place = _Place(place.byte + size, place.line + 1)
    if content.damage:
        if digest is not None:
            digest.update(content.damage.encode())
        yield _Line(place, line[:EXCERPT_BYTES], content.damage)


def _keys(line: bytes) -> Row | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _object(line: _Line, mapping: dict[str, str]) -> Row:
    if line.error:
        raise InvalidError("unreadable_row", line.error)
    value = json.loads(line.content)
    if not isinstance(value, dict):
        raise InvalidError("not_an_object", f"a JSON {type(value).__name__}, not an object")
    lacking = [column for column in mapping.values() if column not in (REST, *value)]
    if lacking:
        raise InvalidError("column_missing", f"no field {', '.join(map(repr, lacking))}")
    return value
