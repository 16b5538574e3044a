"""`format: webdataset`: tar shards as WebDataset defines them (https://github.com/webdataset/webdataset).

Consecutive files whose names are equal up to the first dot of the basename are one sample. The extension after the dot
gives the kind of each file.
"""

import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import IO, Any, ClassVar, Literal, NamedTuple

from maas_ray.data.names import FILE_COLUMNS
from maas_ray.data.sources.base import EXCERPT_BYTES, MAX_BYTES, Inspected, Raw
from maas_ray.data.sources.compressed import Content, codec, opened, usual
from maas_ray.data.sources.files import Files
from maas_ray.data.sources.table import Table, chosen, needed, noted
from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import Row

KEY = "__key__"
_TEXT, _NUMBER, _JSON = ("txt", "text", "transcript"), ("cls", "cls2", "class", "count", "index", "id"), ("json", "jsn")
_META = re.compile(r"__[^/]*__($|/)")
_GROUP_BYTES = 4 << 20
_CHUNK = 1 << 20


class WebDatasetSource(Table, Files):
    """`{format: webdataset, path: "shards/*.tar", image: "jpg;png", label: cls}`: samples in tar files.

    A column is an extension, or several extensions of which a sample has one: `"jpg;png"`. `.txt` is text, `.cls` is a
    number, the fields of a `.json` are columns too, and `__key__` is the name of the sample. Files may be compressed.
    """

    format: Literal["webdataset"] = "webdataset"
    """Name of the format."""
    text: str = "txt"
    """Extension that holds the text."""
    image: str = "jpg;jpeg;png;webp"
    """Extension that holds the image."""
    audio: str = "wav;flac;mp3;ogg"
    """Extension that holds the audio."""
    label: str = "cls"
    """Extension that holds the label."""
    usual: ClassVar[tuple[str, ...]] = (*usual("*.tar"), "*.tgz")

    def mapping(self, columns: tuple[str, ...]) -> dict[str, str]:
        named = super().mapping(columns)
        return {n: self.audio if n == "audio" and "audio" not in self.columns else c for n, c in named.items()}

    def look(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        uri, groups = inspected.file.uri, list[int]()
        places: list[_Place] = []
        lacking, names = set(needed(mapping)), dict[str, None]()
        damage, unread = "", 0
        with opened(uri) as content:
            hashed = _Hashed(content)
            for sample in _samples(hashed, content, _Place(0, 0)):
                if not places or sample.place.byte - places[-1].byte >= _GROUP_BYTES:
                    places.append(sample.place)
                    groups.append(0)
                groups[-1] += 1
                # Samples leave out what they do not have, so they are read until each column has been seen.
                if (lacking or not names) and not sample.error:
                    with suppress(ValueError, RecursionError):
                        names |= dict.fromkeys(_values(sample))
                        lacking = {column for column in needed(mapping) if _first(column, names) not in names}
                if sample.rest:
                    damage = sample.error
                    at = content.damaged_at if content.damage else sample.place.byte
                    unread = inspected.file.size - at
            while hashed.read(_CHUNK):
                pass
            hashed.sha256.update(content.damage.encode())
        inspected = replace(
            inspected,
            sha256=hashed.sha256.hexdigest(),
            rows=sum(groups),
            damage=damage,
            unread=unread,
            lacking=tuple(sorted(lacking)),
            columns=tuple(names) if lacking else (),
        )
        return inspected if codec(uri) else replace(inspected, groups=tuple(groups), places=tuple(places))

    def refers(self, inspected: Inspected, named: dict[str, str]) -> bool:
        return False

    def records(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        uri, start, left = inspected.file.uri, _Place(0, 0), inspected.rows
        if groups is not None and inspected.groups:
            start, left = inspected.places[groups.start], sum(inspected.groups[group] for group in groups)
        with opened(uri) as content:
            content.seek(start.byte)
            skipped = Counter[str]()
            yield from noted(self._rows(content, start, left, mapping, skipped), lambda: dict(skipped))

    def _rows(
        self, content: Content, start: "_Place", left: int, mapping: dict[str, str], skipped: Counter[str]
    ) -> Iterator[Raw]:
        uri = content.uri
        for _, sample in zip(range(left), _samples(content, content, start, skipped), strict=False):
            position, excerpt = sample.place.sample, sample.key.encode(errors="backslashreplace")[:EXCERPT_BYTES]
            try:
                row = self._row(sample, mapping)
            except (ValueError, RecursionError) as error:
                yield Raw(uri, position, error=str(error), excerpt=excerpt, rest=sample.rest)
            else:
                yield Raw(uri, position, row, excerpt=excerpt)

    def _row(self, sample: "_Sample", mapping: dict[str, str]) -> Row:
        if sample.error:
            raise InvalidError("unreadable_row", sample.error)
        values = _values(sample)
        row = chosen(values, {name: _first(column, values) for name, column in mapping.items()})
        for name in FILE_COLUMNS:
            if isinstance(row.get(name), str) and self.encoding == "path":
                raise InvalidError("not_a_file", f"{name} is text; in a tar, files are members")
        return row


class _Place(NamedTuple):
    """Bytes and samples before a sample."""

    byte: int
    sample: int


@dataclass
class _Sample:
    """Members of a tar by their extensions; or an unreadable sample with its error.

    `rest` is true if the error stands for the rest of the file.
    """

    place: _Place
    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    error: str = ""
    rest: bool = False


class _Hashed:
    """A file that computes its digest while it is read."""

    def __init__(self, content: Content) -> None:
        self._content, self.sha256 = content, sha256()

    def read(self, size: int) -> bytes:
        content = self._content.read(size)
        self.sha256.update(content)
        return content


class _Header(tarfile.TarInfo):
    """A header that tells the archive how it ended, because `TarFile` treats a damaged header as the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            archive.ended = error  # type: ignore[attr-defined]
            raise


def _samples(stream: Any, content: Content, place: _Place, skipped: Counter[str] | None = None) -> Iterator[_Sample]:
    """The samples from the file's position on, which is `place`. Damage counts as one sample, the last.

    Members that belong to no sample are counted in `skipped`.
    """
    base, sample, error = place.byte, None, ""
    skipped = Counter() if skipped is None else skipped
    archive: tarfile.TarFile | None = None
    try:
        archive = tarfile.open(  # noqa: SIM115  it owns nothing
            fileobj=stream, mode="r|", bufsize=_CHUNK, tarinfo=_Header, errorlevel=2
        )
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # the list would grow by every member
            if reason := _skipped(member):
                skipped[reason] += 1
            if reason is not None:
                continue
            key, extension = _named(member)
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                    place = _Place(base + member.offset, place.sample + 1)
                sample = _Sample(_Place(base + member.offset, place.sample) if sample is None else place, key)
                place = sample.place
            _add(sample, extension, member, archive)
        error = _end(archive)
    except (tarfile.TarError, EOFError, ValueError) as caught:
        error = f"cut off or damaged: {caught}"
    error = content.damage or error
    if error:  # the sample before the damage may be incomplete
        yield _Sample(place, sample.key if sample else "", error=error, rest=True)
    elif sample is not None:
        yield sample


def _end(archive: tarfile.TarFile) -> str:
    """The reason why an archive ended early. Empty: it ended properly."""
    ended = getattr(archive, "ended", None)
    if isinstance(ended, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
        return "the archive ends without its end mark; it may have been cut off"
    if not isinstance(ended, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
        return f"cut off or damaged: {ended}"
    while rest := archive.fileobj.read(_CHUNK):
        if rest.strip(b"\0"):
            return "there is more after the archive's end mark, as if archives were joined; split it again"
    return ""


def _skipped(member: tarfile.TarInfo) -> str | None:
    """The reason why a member belongs to no sample; empty for a directory or a link. None: it belongs to one.

    The rules are those of the webdataset library.
    """
    if not member.isreg():
        return ""
    if _META.match(member.name) or ("/" not in member.name and member.name[:2] == member.name[-2:] == "__"):
        return "webdataset: members under a name between double underscores were skipped"
    stem, _, extension = member.name.rpartition("/")[2].partition(".")
    return None if stem and extension else "webdataset: members without a name before and after a dot were skipped"


def _named(member: tarfile.TarInfo) -> tuple[str, str]:
    """The sample and the extension of a member."""
    directory, slash, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{directory}{slash}{stem}", extension.lower()


def _add(sample: _Sample, extension: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    if extension in sample.members:
        sample.error = f"the sample {sample.key} has .{extension} twice"
        return
    if member.size > MAX_BYTES:
        size, limit = member.size / 1e6, MAX_BYTES / 1e6
        sample.error = f"{member.name} has {size:,.0f} MB, more than the {limit:.0f} MB of a row"
        return
    file: IO[bytes] | None = archive.extractfile(member)
    sample.members[extension] = file.read() if file else b""


def _first(column: str, names: Any) -> str:
    """The first extension of a column that exists; else the column itself."""
    return next((name for name in (column, *column.split(";")) if name in names), column)


def _values(sample: _Sample) -> Row:
    """The values of a sample by column.

    Raises:
        InvalidError: a value does not match its extension.
    """
    fields: Row = {}
    values: Row = {KEY: sample.key}
    for extension, packed in sample.members.items():
        try:
            content = _unpacked(packed) if extension.endswith(".gz") else packed  # TarWriter packs single members
            last = extension.removesuffix(".gz").rpartition(".")[2]
            if last in _TEXT:
                values[extension] = content.decode("utf-8-sig")
            elif last in _NUMBER:
                values[extension] = int(content)
            elif last in _JSON:
                values[extension] = json.loads(content)
                if isinstance(values[extension], dict):
                    fields |= values[extension]
            else:
                values[extension] = content
        except (ValueError, zlib.error) as error:
            raise InvalidError("unreadable_row", f"{sample.key}.{extension} cannot be read: {error}") from error
    return fields | values


def _unpacked(content: bytes) -> bytes:
    """The content of a packed member.

    Raises:
        ValueError: it is not whole gzip, or is too large.
    """
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    unpacked = unpacker.decompress(content, MAX_BYTES + 1)
    if len(unpacked) > MAX_BYTES:
        raise InvalidError("row_too_large", f"more than {MAX_BYTES / 1e6:.0f} MB when unpacked")
    if not unpacker.eof:
        raise InvalidError("unreadable_row", "not a whole gzip file")
    return unpacked
