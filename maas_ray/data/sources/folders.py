"""`format: image-folder` and `audio-folder`: directories in which names give the label or the transcript."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import ClassVar, Literal

from maas_ray import storage
from maas_ray.data.sources.base import EXCERPT_BYTES, InputFile, Inspected, Raw
from maas_ray.data.sources.files import Files, content, digest_of, stamp
from maas_ray.errors import NotFoundError
from maas_ray.tasks.rows import Row

AUDIO_NAMES = ("*.wav", "*.flac", "*.ogg", "*.mp3")
IMAGE_NAMES = ("*.png", "*.jpg", "*.jpeg", "*.bmp", "*.gif", "*.webp", "*.tif", "*.tiff")


class ImageFolderSource(Files):
    """`{format: image-folder, path: digits}`: the label of an image is the name of its directory."""

    format: Literal["image-folder"] = "image-folder"
    """Name of the format."""
    usual: ClassVar[tuple[str, ...]] = IMAGE_NAMES
    gives: ClassVar[tuple[str, ...] | None] = ("image", "label")

    def inspect(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        return replace(inspected, sha256=digest_of(inspected.file.uri))

    def rows(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        label = PurePosixPath(inspected.file.relative).parent.name
        error = "is not in a directory that could be its label; give the directory above as `path`"
        yield _row(inspected, {"label": label}, "image", mapping, "" if label or "label" not in mapping else error)


class AudioFolderSource(Files):
    """`{format: audio-folder, path: clips}`: the transcript of `a.wav` is in `a.txt` beside it."""

    format: Literal["audio-folder"] = "audio-folder"
    """Name of the format."""
    usual: ClassVar[tuple[str, ...]] = AUDIO_NAMES
    gives: ClassVar[tuple[str, ...] | None] = ("audio", "transcript")

    def stamp(self, file: InputFile) -> str:
        beside = _transcript(file.uri)
        return f"{stamp(file.uri)} {stamp(beside)}" if storage.exists(beside) else stamp(file.uri)

    def inspect(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        beside = _transcript(inspected.file.uri)
        transcript = [bytes.fromhex(digest_of(beside))] if storage.exists(beside) else []
        return replace(inspected, sha256=digest_of(inspected.file.uri, *transcript))

    def rows(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        values: Row = {}
        error = ""
        if "transcript" in mapping.values():
            try:
                values["transcript"] = content(_transcript(inspected.file.uri))
            except NotFoundError:
                name = PurePosixPath(_transcript(inspected.file.relative)).name
                error = f"no transcript beside it: {name} does not exist"
            except ValueError as caught:
                error = str(caught)
        yield _row(inspected, values, "audio", mapping, error)


def _row(inspected: Inspected, values: Row, name: str, mapping: dict[str, str], error: str) -> Raw:
    """The only row of a file, by the task's names of the columns."""
    uri, head = inspected.file.uri, b""
    try:
        values = values | {name: content(uri)}
        head = values[name][:EXCERPT_BYTES]
    except ValueError as caught:
        error = error or str(caught)
    row = None if error else {task: values[column] for task, column in mapping.items()}
    return Raw(uri, 0, row, error, head)


def _transcript(uri: str) -> str:
    """The path of a clip's transcript."""
    return f"{uri.rpartition('.')[0]}.txt"
