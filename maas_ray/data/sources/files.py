"""The base of formats of files: a file, a whole directory or a glob, at any fsspec URI."""

import os
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from maas_ray import storage
from maas_ray.data.sources.base import MAX_BYTES, InputFile, Source
from maas_ray.errors import DataError, InvalidError
from maas_ray.redact import hide_secrets

PYTHON_STDLIB = "PYTHON_STDLIB"
_LAYOUTS = {
    "_temporary": "a job of Spark or Hadoop that has not finished, or that died, keeps rows there",
    "_delta_log": "it is a table of Delta Lake, and the log there says which files count",
    ".hoodie": "it is a table of Hudi, and the timeline there says which files count",
    "metadata": "it is a table of Iceberg, and the snapshots there say which files count",
}
"""Directories beside files that are not all valid, and the reason."""
_CHUNK = 1 << 20


class Files(Source):
    """Files by path and patterns.

    A pattern without a slash is matched with every part of a file's path below the source (`*.py`, `tests`).
    A pattern with a slash is matched with the whole path (`docs/**/*.md`).
    """

    path: str
    """File, directory or glob, as a path or any fsspec URI. `~` and `$VAR` are expanded. `${PYTHON_STDLIB}` is the
    directory of the running interpreter's standard library."""
    include: tuple[str, ...] | None = None
    """Patterns. A file must match one of them. None: in a directory, the format's usual names."""
    exclude: tuple[str, ...] = ()
    """Patterns. A file must match none of them. Hidden files and directories are always skipped."""

    @property
    def location(self) -> str:
        return self.path

    def files(self) -> list[InputFile]:
        return _listed(self)

    def stamp(self, file: InputFile) -> str:
        return stamp(file.uri)

    def identity(self) -> dict[str, Any]:
        return {name: value for name, value in super().identity().items() if name not in ("path", "include", "exclude")}


def stamp(uri: str) -> str:
    """A text that changes when a file changes."""
    fs, path = storage.filesystem(uri)
    with storage.translated(uri):
        fs.invalidate_cache(path)  # an object store's earlier answer
        return str(fs.ukey(path))


def digest_of(uri: str, *more: bytes) -> str:
    """Sha256 of a file's bytes, and of more bytes after them."""
    digest = sha256()
    with storage.open_file(uri) as handle, storage.translated(uri):
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    for part in more:
        digest.update(part)
    return digest.hexdigest()


def content(uri: str) -> bytes:
    """All bytes of a file.

    Raises:
        InvalidError: it is too large, or is a device, a pipe or a directory, which might never end.
        MaasError: it cannot be read.
    """
    fs, path = storage.filesystem(uri)
    with storage.translated(uri):
        info = fs.info(path)
    if info["type"] != "file":
        raise InvalidError("not_a_file", f"{uri} is not a regular file")
    if (info["size"] or 0) > MAX_BYTES:
        size = f"{info['size'] / 1e6:,.0f} MB, more than the {MAX_BYTES / 1e6:.0f} MB of a row"
        raise InvalidError("row_too_large", f"{uri} has {size}")
    return storage.read_bytes(uri)


def _listed(source: Files) -> list[InputFile]:
    """Every file of a source, by relative path.

    Raises:
        DataError: the path does not exist, it cannot be read, or no file matches.
    """
    path = expanded(source.path)
    fs, inner = storage.filesystem(path)
    local = isinstance(fs, LocalFileSystem)
    usual: tuple[str, ...] = ()
    with storage.translated(source.path):
        fs.invalidate_cache()
        if fs.isdir(inner):
            # An object store lists everything below a prefix at once; a local tree is walked.
            entries = _walk(fs, inner, source.exclude) if local else fs.find(inner, detail=True)
            root, usual = inner, source.usual
            _check_layout(source, fs, inner, entries)
        elif fs.exists(inner):
            entries, root = {inner: fs.info(inner)}, str(PurePosixPath(inner).parent)
        elif any(sign in inner for sign in "*?["):
            entries, root = fs.glob(inner, detail=True), _root(inner)
        else:
            expansion = f" ({inner})" if inner != source.path else ""
            raise DataError(f"{source.path} does not exist{expansion}.", code="path_missing")
    chosen = _chooser(source, usual, whole=len(entries) == 1 and inner in entries)
    files: list[InputFile] = []
    others: list[InputFile] = []
    above = hide_secrets(root).rstrip("/")
    for name, info in sorted(entries.items()):
        # A link to a file counts as that file. A link to a directory is not followed, because it may be circular.
        if info["type"] == "file" or (info.get("islink") and fs.isfile(name)):
            # A path below the source identifies a file. The signature of its URL does not, and is not recorded.
            relative = hide_secrets(name).removeprefix(above).lstrip("/").encode(errors="backslashreplace").decode()
            uri = name if local else fs.unstrip_protocol(name)
            file = InputFile(uri, relative, int(info["size"] or 0))
            (files if chosen(relative) else others).append(file)
    if not files and inner in entries:
        # A device or a pipe might never end.
        raise DataError(f"{source.path} is not a regular file.", code="not_a_file")
    if not files:
        suffixes = Counter(PurePosixPath(file.relative).suffix or "no suffix" for file in others)
        existing = ", ".join(f"{suffix} ({count:,})" for suffix, count in suffixes.most_common(5)) or "none"
        wanted = f"include {list(source.include or usual)}" if source.include or usual else "the path"
        wanted += f" and not exclude {list(source.exclude)}" if source.exclude else ""
        raise DataError(
            f"{source.path}: no file matches {wanted}; existing files: {existing}.",
            code="no_files",
        )
    return files


def _check_layout(source: Files, fs: Any, root: str, entries: Mapping[str, Any]) -> None:
    """Return if all files below a directory are rows.

    Raises:
        DataError: a log decides which of them are; old and unfinished files are not.
    """
    existing = {".hoodie"} if fs.isdir(f"{root.rstrip('/')}/.hoodie") else set()
    for name in entries:
        *directories, last = name.removeprefix(root).split("/")
        existing |= {part for part in directories if part != "metadata" or last.endswith(".metadata.json")}
    excluded = [_pattern(pattern) for pattern in source.exclude]
    for part, reason in _LAYOUTS.items():
        if part in existing and not any(matches(part) for matches in excluded):
            raise DataError(
                f"{source.path} contains {part!r}: {reason}. Export its rows to another directory, or read all files "
                f"that lie there with `exclude: [{part}]`.",
                code="table_layout",
            )


def _walk(fs: LocalFileSystem, root: str, exclude: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Files below a directory by path. Hidden directories, and those excluded by name, are not entered.

    A directory that cannot be listed is an error, and does not count as empty.
    """
    skipped = [_pattern(pattern) for pattern in exclude if "/" not in pattern.strip("/")]
    entries: dict[str, dict[str, Any]] = {}
    for _, directories, files in fs.walk(root, detail=True, on_error="raise"):
        entries |= {info["name"]: info for info in files.values()}
        for name in list(directories):
            if name.startswith(".") or any(matches(name) for matches in skipped):
                del directories[name]
    return entries


def expanded(path: str) -> str:
    """The path with `~` and variables expanded. A variable that is not set is an error: the path would be another."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name == PYTHON_STDLIB:
            return sysconfig.get_path("stdlib")
        if name not in os.environ:
            raise DataError(
                f"{path}: the variable {name} is not set. Set it, or write the path out.", code="variable_missing"
            )
        return os.environ[name]

    return os.path.expanduser(re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, path))


def _root(glob: str) -> str:
    """The part of a glob before the first component that contains a pattern."""
    parts = glob.split("/")
    first = next(index for index, part in enumerate(parts) if any(sign in part for sign in "*?["))
    return "/".join(parts[:first])


def _chooser(source: Files, usual: tuple[str, ...], *, whole: bool) -> Callable[[str], bool]:
    """A function that tells which relative paths belong to a source. A file that is the path itself always does."""
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
