"""Where rows come from: what a user writes under `sources:`, and the files that means.

A source is a file, a directory (taken whole) or a glob, at any fsspec URI, in one of six formats. Knows
nothing of what the files hold; `maas_ray.data.reading` does.
"""

import codecs
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, get_args

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate
from pydantic import Field, field_validator

from maas_ray import storage
from maas_ray.errors import DataError
from maas_ray.spec import Spec

PYTHON_STDLIB = "PYTHON_STDLIB"
KEEP_PREFIX = "keep/"
"""Before the names of columns that are read to be kept as they are, whatever the task makes of them."""
AUDIO_NAMES = ("*.wav", "*.flac", "*.ogg", "*.mp3")
IMAGE_NAMES = ("*.png", "*.jpg", "*.jpeg", "*.bmp", "*.gif", "*.webp", "*.tif", "*.tiff")


class _Files(Spec):
    """Files by path and patterns.

    A pattern without a slash is matched with every part of a file's path below the source (`*.py`, `tests`);
    one with a slash with the whole of it (`docs/**/*.md`).
    """

    path: str
    """File, directory or glob; any fsspec URI. `~` and `$VAR` are expanded; `${PYTHON_STDLIB}` is the
    directory of the running interpreter's standard library."""
    include: tuple[str, ...] | None = None
    """Patterns, one of which a file must match. None: in a directory, the format's usual names."""
    exclude: tuple[str, ...] = ()
    """Patterns, none of which a file may match. Hidden files and directories are always left out."""
    weight: float = Field(1.0, gt=0)
    """How often each of its rows is seen in an epoch of training: 2 is twice, 0.5 a half of them."""
    split: Literal["train", "validation", "test"] | None = None
    """The split that its rows are for. None: as `splits` says."""

    usual: ClassVar[tuple[str, ...]]
    """Names that files of this format usually have."""

    gives: ClassVar[tuple[str, ...] | None]
    """Columns of tasks that this format can give. None: any."""

    def mapping(self, columns: tuple[str, ...]) -> dict[str, str]:
        """Where a task's columns stand in the files, and those to keep, which have their names there."""
        return {name: name.removeprefix(KEEP_PREFIX) for name in columns}

    def identity(self) -> dict[str, Any]:
        """What decides how a file is read, wherever it lies."""
        return self.model_dump(mode="json", exclude={"path", "include", "exclude"})


class TextSource(_Files):
    """`{format: text, path: docs}`: one document a file, UTF-8."""

    format: Literal["text"] = "text"
    """Which format."""
    usual: ClassVar[tuple[str, ...]] = ("*",)
    gives: ClassVar[tuple[str, ...] | None] = ("text",)


class ImageFolderSource(_Files):
    """`{format: image-folder, path: digits}`: an image's label is the name of the directory it lies in."""

    format: Literal["image-folder"] = "image-folder"
    """Which format."""
    usual: ClassVar[tuple[str, ...]] = IMAGE_NAMES
    gives: ClassVar[tuple[str, ...] | None] = ("image", "label")


class AudioFolderSource(_Files):
    """`{format: audio-folder, path: clips}`: what is said in `a.wav` stands beside it, in `a.txt`."""

    format: Literal["audio-folder"] = "audio-folder"
    """Which format."""
    usual: ClassVar[tuple[str, ...]] = AUDIO_NAMES
    gives: ClassVar[tuple[str, ...] | None] = ("audio", "transcript")


class _Table(_Files):
    """Rows with named columns. Those that the task has no use for are ignored."""

    columns: dict[str, str] = {}
    """Where a task's columns stand, by the task's name for them: `{label: category}`. Others have the same name."""
    text: str = "text"
    """Column that holds the text; the same as in `columns`."""
    image: str = "image"
    """Column that holds the image: its encoded bytes, or a string as `encoding` says."""
    label: str = "label"
    """Column that holds the label."""
    encoding: Literal["path", "base64"] = "path"
    """What a string in a column of images or audio is: a path (relative ones start at the table's own directory)
    or the file's bytes in base64, which may be folded or a `data:` URL."""

    gives: ClassVar[tuple[str, ...] | None] = None

    def mapping(self, columns: tuple[str, ...]) -> dict[str, str]:
        named = {"text": self.text, "image": self.image, "label": self.label} | self.columns
        return {name: named.get(name, column) for name, column in super().mapping(columns).items()}

    def identity(self) -> dict[str, Any]:
        document = super().identity()
        if not self.columns:
            del document["columns"]
        return document


class JsonlSource(_Table):
    """`{format: jsonl, path: notes.jsonl, text: body}`: one JSON object a line."""

    format: Literal["jsonl"] = "jsonl"
    """Which format."""
    usual: ClassVar[tuple[str, ...]] = ("*.jsonl", "*.ndjson")


class ParquetSource(_Table):
    """`{format: parquet, path: notes.parquet, text: body}`"""

    format: Literal["parquet"] = "parquet"
    """Which format."""
    usual: ClassVar[tuple[str, ...]] = ("*.parquet",)


class CsvSource(_Table):
    """`{format: csv, path: sales.csv, delimiter: ";"}`: text in columns, parsed as RFC 4180 has it.

    Every value is a string or missing: what it means is the task's affair. Files named `.gz`, `.bz2` or `.xz` are
    decompressed.
    """

    format: Literal["csv"] = "csv"
    """Which format."""
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """What stands between two values. None: a tab in files named `.tsv` or `.tab`, else a comma."""
    quote: str = Field('"', max_length=1)
    """What stands around values with delimiters or line breaks in them, and is doubled there. Empty: nothing does."""
    charset: str = "utf-8"
    """How text is encoded, by Python's names: `utf-8` (a byte order mark is left out), `latin-1`, `cp1252`, …"""
    names: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the columns, where the first row is none of them. None: they stand in the first row."""
    missing: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
    """What stands where a value is missing."""
    usual: ClassVar[tuple[str, ...]] = tuple(
        f"*.{kind}{packed}" for kind in ("csv", "tsv", "tab") for packed in ("", ".gz", ".bz2", ".xz")
    )

    @field_validator("charset")
    @classmethod
    def _lines_can_be_found(cls, charset: str) -> str:
        try:
            name = codecs.lookup(charset).name
            if "\n".encode(charset) == b"\n":
                return name
        except LookupError:
            raise ValueError(f"{charset!r} is no encoding that Python knows; most files are utf-8.") from None
        raise ValueError(f"lines cannot be found in {charset}; convert the files to utf-8.")

    def delimiter_of(self, uri: str) -> str:
        """What stands between the values of a file."""
        tabs = any(suffix in (".tsv", ".tab") for suffix in PurePosixPath(uri.lower()).suffixes)
        return self.delimiter or ("\t" if tabs else ",")


FILE_COLUMNS = ("image", "audio")
"""Columns of tasks that hold files."""

TABLES = (JsonlSource, ParquetSource, CsvSource)
"""Formats of rows with named columns."""

AnySource = Annotated[
    TextSource | JsonlSource | ParquetSource | CsvSource | ImageFolderSource | AudioFolderSource,
    Field(discriminator="format"),
]


def formats_for(columns: tuple[str, ...]) -> list[str]:
    """The formats that can give these columns of a task."""
    sources = get_args(get_args(AnySource)[0])
    return [
        source.model_fields["format"].default
        for source in sources
        if source.gives is None or set(columns) <= set(source.gives)
    ]


@dataclass(frozen=True)
class InputFile:
    """A file of a source: its URI, its path below the source (POSIX) and its size in bytes."""

    uri: str
    relative: str
    size: int


def list_files(source: AnySource) -> list[InputFile]:
    """Every file that a source means, by relative path.

    Raises:
        DataError: there is no such path, it cannot be read, or no file matches.
    """
    path = _expand(source.path)
    fs, inner = storage.filesystem(path)
    local = isinstance(fs, LocalFileSystem)
    usual: tuple[str, ...] = ()
    try:
        if fs.isdir(inner):
            # An object store lists everything below a prefix at once; a local tree is walked.
            entries = _walk(fs, inner, source.exclude) if local else fs.find(inner, detail=True)
            root, usual = inner, source.usual
        elif fs.exists(inner):
            entries, root = {inner: fs.info(inner)}, str(PurePosixPath(inner).parent)
        elif any(sign in inner for sign in "*?["):
            entries, root = fs.glob(inner, detail=True), _root(inner)
        else:
            raise DataError(f"{source.path} does not exist" + (f" ({inner})." if inner != source.path else "."))
    except OSError as error:
        raise DataError(f"{source.path} cannot be read: {error.strerror or error}.") from error
    chosen = _chooser(source, usual, whole=len(entries) == 1 and inner in entries)
    files: list[InputFile] = []
    others: list[InputFile] = []
    for name, info in sorted(entries.items()):
        # A link to a file is that file; a link to a directory is not followed, since it may lead in circles.
        if info["type"] == "file" or (info.get("islink") and fs.isfile(name)):
            relative = name.removeprefix(root.rstrip("/")).lstrip("/").encode(errors="backslashreplace").decode()
            uri = name if local else fs.unstrip_protocol(name)
            file = InputFile(uri, relative, int(info["size"] or 0))
            (files if chosen(relative) else others).append(file)
    if not files:
        suffixes = Counter(PurePosixPath(file.relative).suffix or "no suffix" for file in others)
        seen = ", ".join(f"{suffix} ({count:,})" for suffix, count in suffixes.most_common(5)) or "no file at all"
        wanted = f"include {list(source.include or usual)}" if source.include or usual else "the path"
        raise DataError(f"{source.path}: no file matches {wanted}, exclude {list(source.exclude)}; found: {seen}.")
    return files


def _walk(fs: LocalFileSystem, root: str, exclude: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Files below a directory by path, without entering hidden directories or such as are left out by name.

    A directory that cannot be listed is an error, not an empty one.
    """
    skipped = [_pattern(pattern) for pattern in exclude if "/" not in pattern.strip("/")]
    entries: dict[str, dict[str, Any]] = {}
    for _, directories, files in fs.walk(root, detail=True, on_error="raise"):
        entries |= {info["name"]: info for info in files.values()}
        for name in list(directories):
            if name.startswith(".") or any(matches(name) for matches in skipped):
                del directories[name]
    return entries


def _expand(path: str) -> str:
    """`~` and variables; one that is not set is an error, since the path would mean something else."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name == PYTHON_STDLIB:
            return sysconfig.get_path("stdlib")
        if name not in os.environ:
            raise DataError(f"{path}: the variable {name} is not set. Set it, or write the path out.")
        return os.environ[name]

    return os.path.expanduser(re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, path))


def _root(glob: str) -> str:
    """The part of a glob before the first component with a pattern in it."""
    parts = glob.split("/")
    place = next(place for place, part in enumerate(parts) if any(sign in part for sign in "*?["))
    return "/".join(parts[:place])


def _chooser(source: AnySource, usual: tuple[str, ...], *, whole: bool) -> Callable[[str], bool]:
    """Whether a source means the file at a relative path; a file that was named itself is always meant."""
    if source.include is not None:
        include = [_pattern(pattern) for pattern in source.include]
    else:
        include = [_pattern(pattern, re.IGNORECASE) for pattern in usual]
    exclude = [_pattern(pattern) for pattern in source.exclude]

    def chosen(relative: str) -> bool:
        if any(part.startswith(".") for part in relative.split("/")):
            return False
        included = not include or any(matches(relative) for matches in include)
        return included and not any(matches(relative) for matches in exclude)

    return (lambda relative: True) if whole else chosen


def _pattern(pattern: str, flags: re.RegexFlag = re.NOFLAG) -> Callable[[str], bool]:
    expression = re.compile(glob_translate(pattern.strip("/")), flags)
    if "/" in pattern.strip("/"):
        return lambda relative: expression.match(relative) is not None
    return lambda relative: any(expression.match(part) for part in relative.split("/"))
