"""`format: jsonl`: JSON lines, one object on each line, or one array of objects. A field that is left out is null."""

import codecs
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from maas_ray.data.sources.base import EXCERPT_BYTES, MAX_BYTES, Inspected, Raw
from maas_ray.data.sources.compressed import Content, codec, opened, usual
from maas_ray.data.sources.files import Files
from maas_ray.data.sources.json_array import Place, Text, elements, is_array
from maas_ray.data.sources.table import Table, chosen, needed
from maas_ray.errors import InvalidError, Problem
from maas_ray.tasks.rows import Row

_GROUP_BYTES = 4 << 20


class JsonlSource(Table, Files):
    """`{format: jsonl, path: notes.jsonl, text: body}`: one JSON object on each line, or one array of objects.

    Files may be compressed.
    """

    format: Literal["jsonl"] = "jsonl"
    """Name of the format."""
    possible: ClassVar[tuple[str, ...]] = usual("*.json")
    usual: ClassVar[tuple[str, ...]] = usual("*.jsonl", "*.ndjson")

    def look(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        uri, digest = inspected.file.uri, sha256()
        groups: list[int] = []
        places: list[Place] = []
        lacking, keys = set(needed(mapping)), dict[str, None]()
        damage, unread = "", 0
        with opened(uri) as content:
            for line in _rows(content)(content, Place(0, 0), digest):
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
                    at = content.damaged_at if content.damage else line.place.byte
                    damage, unread = line.error, max(inspected.file.size - at, 0)
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
        uri, start, left = inspected.file.uri, Place(0, 0), inspected.rows
        if groups is not None and inspected.groups:
            start, left = inspected.places[groups.start], sum(inspected.groups[group] for group in groups)
        with opened(uri) as content:
            rows = _rows(content)
            content.seek(start.byte)
            for _, line in zip(range(left), rows(content, start), strict=False):
                number, excerpt = line.place.row + 1, line.content[:EXCERPT_BYTES]
                try:
                    yield Raw(uri, number, chosen(_object(line), mapping), excerpt=excerpt)
                except json.JSONDecodeError as error:
                    yield Raw(uri, number, error=f"not JSON: {error.msg}", excerpt=excerpt)
                except (ValueError, RecursionError) as error:
                    yield Raw(uri, number, error=str(error), excerpt=excerpt, rest=line.rest)


def _rows(content: Content) -> Callable[..., Iterator[Text]]:
    """The function that gives the rows of a file."""
    return elements if is_array(content) else _lines


def _lines(content: Content, place: Place, digest: Any = None) -> Iterator[Text]:
    """The lines of a file that are not blank, from its position on, which is `place`. Damage counts as the last one."""
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
            yield Text(place, head, error, rest=utf16)
        if utf16:
            while digest is not None and (line := content.read(1 << 20)):
                digest.update(line)
            return
        place = Place(place.byte + size, place.row + 1)
    if content.damage:
        if digest is not None:
            digest.update(content.damage.encode())
        yield Text(place, line[:EXCERPT_BYTES], content.damage, rest=True)


def _whole_document(uri: str, first: Text) -> str:
    """The problem of a file of objects over several lines, by its first line. Empty: it is lines."""
    if first.content.removeprefix(codecs.BOM_UTF8).strip() != b"{":
        return ""
    name = PurePosixPath(uri)
    unpack = {"gzip": "gzip -dc", "bzip2": "bzip2 -dc", "xz": "xz -dc", "zstd": "zstd -dc"}.get(codec(uri) or "", "cat")
    while codec(name.name):
        name = name.with_suffix("")
    source, target = shlex.quote(PurePosixPath(uri).name), shlex.quote(f"{name.stem}-lines.jsonl")
    return Problem(
        f"{uri} is a JSON document over several lines, not an object on each line. "
        f"Convert it: {unpack} {source} | jq -c . > {target}",
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


def _object(line: Text) -> Row:
    if line.error:
        raise InvalidError("unreadable_row", line.error)
    value = json.loads(line.content)
    if not isinstance(value, dict):
        raise InvalidError("not_an_object", f"a JSON {type(value).__name__}, not an object")
    return value
