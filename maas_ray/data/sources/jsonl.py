"""`format: jsonl`: JSON lines, one object on each line. A field that a line leaves out is null."""

import codecs
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal, NamedTuple

from maas_ray.data.sources.base import EXCERPT_BYTES, MAX_BYTES, Inspected, Raw
from maas_ray.data.sources.compressed import Content, codec, opened, usual
from maas_ray.data.sources.files import Files
from maas_ray.data.sources.table import Table, chosen, needed
from maas_ray.errors import InvalidError, Problem
from maas_ray.tasks.rows import Row

_GROUP_BYTES = 4 << 20
_OPEN_ARRAY = re.compile(rb"\[\s*(\{|$)")


class JsonlSource(Table, Files):
    """`{format: jsonl, path: notes.jsonl, text: body}`: one JSON object on each line. Files may be compressed."""

    format: Literal["jsonl"] = "jsonl"
    """Name of the format."""
    usual: ClassVar[tuple[str, ...]] = usual("*.jsonl", "*.ndjson")

    def look(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        uri, digest = inspected.file.uri, sha256()
        groups: list[int] = []
        places: list[_Place] = []
        lacking, keys = set(needed(mapping)), dict[str, None]()
        damage, unread = "", 0
        with opened(uri) as content:
            for line in _lines(content, _Place(0, 0), digest):
                if not places and (problem := _whole_document(uri, line)):
                    return replace(inspected, problem=problem)
                if not places or line.place.byte - places[-1].byte >= _GROUP_BYTES:
                    places.append(line.place)
                    groups.append(0)
                groups[-1] += 1
                # Writers leave nulls out, so lines are parsed until each column has been seen.
                if (lacking or not keys) and not line.error:
                    keys |= dict.fromkeys(_keys(line.content))
                    lacking -= keys.keys()
                if line.rest:
                    damage, unread = line.error, inspected.file.size - content.damaged_at
        inspected = replace(
            inspected,
            sha256=digest.hexdigest(),
            rows=sum(groups),
            damage=damage,
            unread=unread,
            lacking=tuple(sorted(lacking)),
            columns=tuple(keys) if lacking else (),
        )
        return inspected if codec(uri) else replace(inspected, groups=tuple(groups), places=tuple(places))

    def records(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        uri, start, left = inspected.file.uri, _Place(0, 0), inspected.rows
        if groups is not None and inspected.groups:
            start, left = inspected.places[groups.start], sum(inspected.groups[group] for group in groups)
        with opened(uri) as content:
            content.seek(start.byte)
            for _, line in zip(range(left), _lines(content, start), strict=False):
                number, excerpt = line.place.line + 1, line.content[:EXCERPT_BYTES]
                try:
                    yield Raw(uri, number, chosen(_object(line), mapping), excerpt=excerpt)
                except json.JSONDecodeError as error:
                    yield Raw(uri, number, error=f"not JSON: {error.msg}", excerpt=excerpt)
                except (ValueError, RecursionError) as error:
                    yield Raw(uri, number, error=str(error), excerpt=excerpt, rest=line.rest)


class _Place(NamedTuple):
    """Bytes and lines before a line."""

    byte: int
    line: int


class _Line(NamedTuple):
    """A line that is not blank; or the beginning of an unreadable one, with its error.

    `rest` is true if the error stands for the rest of the file.
    """

    place: _Place
    content: bytes
    error: str = ""
    rest: bool = False


def _lines(content: Content, place: _Place, digest: Any = None) -> Iterator[_Line]:
    """The lines of a file from its position on, which is `place`. Damage counts as one line, the last."""
    while line := content.readline(MAX_BYTES + 1):
        head, size, error = line, len(line), ""
        if digest is not None:
            digest.update(line)
        utf16 = not place.byte and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if utf16:
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
            yield _Line(place, head, error, rest=utf16)
        if utf16:
            while digest is not None and (line := content.read(1 << 20)):
                digest.update(line)
            return
        place = _Place(place.byte + size, place.line + 1)
    if content.damage:
        if digest is not None:
            digest.update(content.damage.encode())
        yield _Line(place, line[:EXCERPT_BYTES], content.damage, rest=True)


def _whole_document(uri: str, first: _Line) -> str:
    """The problem of a file that is one JSON document instead of lines, by its first line. Empty: it is lines."""
    head = first.content.removeprefix(codecs.BOM_UTF8).strip()
    rows = _parsed(head)
    if isinstance(rows, list):
        is_array = bool(rows) and isinstance(rows[0], dict)
    else:
        is_array = rows is None and _OPEN_ARRAY.match(head) is not None
    if not is_array and head != b"{":
        return ""
    name = PurePosixPath(uri)
    unpack = {"gzip": "gzip -dc", "bzip2": "bzip2 -dc", "xz": "xz -dc", "zstd": "zstd -dc"}.get(codec(uri) or "", "cat")
    while codec(name.name):
        name = name.with_suffix("")
    source, target = shlex.quote(PurePosixPath(uri).name), shlex.quote(f"{name.stem}-lines.jsonl")
    kind, query = ("a JSON array", "'.[]'") if is_array else ("a JSON document over several lines", ".")
    return Problem(
        f"{uri} is {kind}, not an object on each line. Convert it: {unpack} {source} | jq -c {query} > {target}",
        code="not_json_lines",
    )


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _keys(line: bytes) -> Row:
    value = _parsed(line)
    return value if isinstance(value, dict) else {}


def _object(line: _Line) -> Row:
    if line.error:
        raise InvalidError("unreadable_row", line.error)
    value = json.loads(line.content)
    if not isinstance(value, dict):
        raise InvalidError("not_an_object", f"a JSON {type(value).__name__}, not an object")
    return value
