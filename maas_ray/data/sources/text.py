"""`format: text`: one document in each file."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import ClassVar, Literal

from maas_ray.data.sources.base import EXCERPT_BYTES, MAX_BYTES, Inspected, Raw
from maas_ray.data.sources.compressed import opened
from maas_ray.data.sources.files import Files

_CHUNK = 1 << 20


class TextSource(Files):
    """`{format: text, path: docs}`: one UTF-8 document in each file. Files may be compressed."""

    format: Literal["text"] = "text"
    """Name of the format."""
    usual: ClassVar[tuple[str, ...]] = ("*",)
    gives: ClassVar[tuple[str, ...] | None] = ("text",)

    def inspect(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        digest = sha256()
        with opened(inspected.file.uri) as content:
            while chunk := content.read(_CHUNK):
                digest.update(chunk)
            digest.update(content.damage.encode())
        return replace(inspected, sha256=digest.hexdigest())

    def rows(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        uri = inspected.file.uri
        with opened(uri) as content:
            text = content.read(MAX_BYTES + 1)
            error = content.damage
        if len(text) > MAX_BYTES:
            error = f"larger than the {MAX_BYTES / 1e6:.0f} MB of a row"
        yield Raw(uri, 0, None if error else dict.fromkeys(mapping, text), error, text[:EXCERPT_BYTES])
