"""Bytes: fsspec URIs, and artefacts that exist whole or not at all.

An artefact is a directory at any URI. Its files are put first, each atomically; `manifest.json`, which
names every file with size and sha256, is put last, and that is the commit: a reader opens an artefact
through its manifest, so it can never see one that is half written. A committed artefact is immutable.
Two writers never meet, since a directory (or the names inside it) is derived from what it holds.

Knows nothing of what the artefacts mean; that stands under `meta` in the manifest.
"""

import functools
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from maas_ray.errors import ConflictError, CorruptError, MaasError, NotFoundError, StorageError
from maas_ray.spec import digest_of

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 1 << 20
_LONGEST_PAUSE = 30.0
_SAFE_PART = re.compile(r"^(?!\.{1,2}$)[^/\\\0]+$")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class FileEntry:
    """One file of an artefact: path inside it (POSIX), size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        check_relative(self.path)


@dataclass(frozen=True)
class Artifact:
    """A committed artefact. `meta` is what its kind says of it; `digest` identifies all its bytes."""

    uri: str
    kind: str
    files: tuple[FileEntry, ...]
    meta: dict[str, Any] = field(repr=False)

    @property
    def digest(self) -> str:
        """Sha256 over kind, meta and the digests of all files."""
        return artifact_digest(self.kind, self.files, self.meta)

    def entry(self, path: str) -> FileEntry:
        """The manifest's entry for a file.

        Raises:
            NotFoundError: the artefact has no such file.
        """
        for entry in self.files:
            if entry.path == path:
                return entry
        raise NotFoundError(f"{self.uri} has no file {path!r}; it has {[e.path for e in self.files]}.")

    def read(self, path: str) -> bytes:
        """A file's bytes, verified."""
        entry = self.entry(path)
        data = read_bytes(join(self.uri, path))
        _check(entry, len(data), hashlib.sha256(data).hexdigest(), self.uri)
        return data

    def fetch(self, directory: Path, paths: list[str] | None = None) -> Path:
        """Download all files (or those named) into a local directory, verifying each on the way."""
        return fetch(self.uri, [entry for entry in self.files if paths is None or entry.path in paths], directory)

    def local(self) -> Path | None:
        """The directory itself when it lies on a local filesystem, else None. Not verified."""
        return local_path(self.uri)

    def verify(self) -> None:
        """Read every file and compare with the manifest.

        Raises:
            CorruptError: names the first file that is missing or differs.
        """
        verify(self.uri, self.files)


# --- URIs ------------------------------------------------------------------------------------------


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URI (or local path) and the path on it."""
    try:
        fs, path = fsspec.core.url_to_fs(_expand(uri))
    except ImportError as error:
        fix = "pip install 'maas-ray[s3]'" if uri.startswith(("s3://", "s3a://")) else str(error)
        raise StorageError(f"no access to {uri!r}, its library is not installed: {fix}") from error
    except ValueError as error:
        raise StorageError(f"no access to {uri!r}: {error}") from error
    return fs, path


def is_local(uri: str) -> bool:
    """Whether a URI lies on this machine's own filesystem (or one that is mounted)."""
    return local_path(uri) is not None


def local_path(uri: str) -> Path | None:
    """The path itself when a URI lies on a local filesystem, else None."""
    fs, path = filesystem(uri)
    return Path(path) if isinstance(fs, LocalFileSystem) else None


def join(uri: str, *parts: str) -> str:
    """A URI below another; no part may climb out of it."""
    for part in parts:
        check_relative(part)
    scheme, separator, path = _expand(uri).rpartition("://")
    return scheme + separator + "/".join([path.rstrip("/"), *parts])


def check_relative(path: str) -> str:
    """The path itself if it is relative, POSIX and does not climb; else `StorageError`."""
    if not path or path.startswith("/") or not all(_SAFE_PART.match(part) for part in path.split("/")):
        raise StorageError(f"{path!r} is not a plain relative path.")
    return path


def _expand(uri: str) -> str:
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


# --- single files ----------------------------------------------------------------------------------


def read_bytes(uri: str) -> bytes:
    """All bytes of a file.

    Raises:
        NotFoundError: there is no such file.
        StorageError: it cannot be read.
    """
    fs, path = filesystem(uri)
    with translated(uri):
        return bytes(fs.cat_file(path))


def open_file(uri: str) -> IO[bytes]:
    """A seekable binary file to read from; the caller closes it."""
    fs, path = filesystem(uri)
    with translated(uri):
        return cast(IO[bytes], fs.open(path, "rb"))


def write_bytes(uri: str, data: bytes) -> None:
    """Put a file atomically: a reader sees the old content or the new, never a part."""
    with translated(uri):
        _put(uri, lambda target: target.write(data))


def read_json(uri: str) -> Any:
    """A JSON document.

    Raises:
        CorruptError: the file is not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise CorruptError(f"{uri} is not valid JSON: {error}") from error


def write_json(uri: str, document: Any) -> None:
    """Put a JSON document atomically, readable by a person."""
    write_bytes(uri, (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def exists(uri: str) -> bool:
    """Whether a file or directory is there."""
    fs, path = filesystem(uri)
    with translated(uri):
        return bool(fs.exists(path))


def modified(uri: str) -> datetime | None:
    """When a file was written; None where the filesystem does not say."""
    fs, path = filesystem(uri)
    with translated(uri):
        try:
            found: datetime = fs.modified(path)
        except NotImplementedError:
            return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def list_directory(uri: str) -> list[str]:
    """Names directly below a URI, sorted; empty when there is no such directory."""
    fs, path = filesystem(uri)
    with translated(uri):
        fs.invalidate_cache()
        try:
            found = {PurePosixPath(name) for name in fs.ls(path, detail=False)}
        except FileNotFoundError:  # asked of `isdir`, storage that cannot be reached would have no directories
            return []
    return sorted(name.name for name in found - {PurePosixPath(path)})


def delete(uri: str) -> None:
    """Remove a file or directory tree; nothing happens when it is not there."""
    fs, path = filesystem(uri)
    with translated(uri):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def put(uri: str, write: Callable[[Any], Any]) -> tuple[int, str]:
    """Put a file atomically as `write` writes it to the binary file it is given. Returns its size and sha256."""
    written = _Digesting()

    def through(target: Any) -> None:
        written.begin(target)
        try:
            write(written)
        except Exception:
            if written.failure is not None:
                raise written.failure from None
            raise

    with translated(uri):
        _put(uri, through)
    return written.size, written.sha256.hexdigest()


def persistently(call: Callable[[], _Result], seconds: float, say: Callable[[str], None]) -> _Result:
    """What `call` returns. While storage fails it is called again, at growing intervals, for so many seconds.

    Args:
        call: what to do.
        seconds: how long to go on trying; 0: it is called once.
        say: told of each failure that is not the last.

    Raises:
        StorageError: the last failure.
    """
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            return call()
        except CorruptError:
            raise  # waiting mends no bytes
        except (StorageError, NotFoundError) as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            pause = min(pause, left)
            say(f"{error}; trying again in {pause:.1f} s")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def upload(local: Path, uri: str) -> tuple[int, str]:
    """Put a local file atomically. Returns its size and sha256."""
    with local.open("rb") as source:
        return put(uri, lambda target: shutil.copyfileobj(source, target, _CHUNK))


class _Digesting:
    """A file to write to that keeps count and digest of what passes, and what went wrong: `torch.save` hides it."""

    def begin(self, target: Any) -> None:
        self._target, self.size, self.sha256 = target, 0, hashlib.sha256()
        self.failure: Exception | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.sha256.update(view)
        self.size += len(view)
        try:
            self._target.write(view)
        except Exception as error:
            self.failure = error
            raise
        return len(view)

    def flush(self) -> None:
        self._target.flush()


def copy(source: str, target: str) -> None:
    """Put a file of an artefact to another place as well: a hard link on a local disk, a copy inside an object store.

    Files of artefacts are never written to, so two names of the same bytes are as good as two files.
    """
    (fs, path), (other, final) = filesystem(source), filesystem(target)
    with translated(target):
        if isinstance(fs, LocalFileSystem) and isinstance(other, LocalFileSystem):
            Path(final).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, final)
            except FileNotFoundError:
                raise
            except OSError:  # another disk, or a filesystem without links
                upload(Path(path), target)
        elif fs is other:
            fs.cp_file(path, final)
        else:
            with fs.open(path, "rb") as opened:
                _put(target, lambda file: shutil.copyfileobj(opened, file, _CHUNK))


def file_entry(local: Path, path: str) -> FileEntry:
    """The manifest entry of a local file."""
    digest = hashlib.sha256()
    with local.open("rb") as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
    return FileEntry(path, local.stat().st_size, digest.hexdigest())


# --- artefacts -------------------------------------------------------------------------------------


def artifact_digest(kind: str, files: tuple[FileEntry, ...], meta: dict[str, Any]) -> str:
    """What identifies an artefact: sha256 over its kind, its meta and its files' digests."""
    listing = sorted([entry.path, entry.size, entry.sha256] for entry in files)
    return digest_of({"kind": kind, "files": listing, "meta": meta})


def publish(
    directory: Path,
    parent: str,
    kind: str,
    meta: dict[str, Any],
    retry_seconds: float = 0.0,
    say: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Publish a local directory as the artefact `parent/<digest>`.

    The directory is named by what it holds, so publishing the same content again, after a crash or by
    somebody else at the same moment, writes the same bytes to the same place. A write that fails is tried
    again for `retry_seconds`, and `say` is told.

    Returns:
        The committed artefact.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = tuple(file_entry(path, path.relative_to(directory).as_posix()) for path in paths)
    uri = join(parent, artifact_digest(kind, files, meta)[:16])
    if not exists(join(uri, MANIFEST)):
        for path, entry in zip(paths, files, strict=True):
            put_there = functools.partial(upload, path, join(uri, entry.path))
            if persistently(put_there, retry_seconds, say) != (entry.size, entry.sha256):
                raise StorageError(f"{path} changed while it was published; nothing was committed. Try again.")
    return persistently(functools.partial(commit, uri, kind, files, meta), retry_seconds, say)


def commit(uri: str, kind: str, files: tuple[FileEntry, ...], meta: dict[str, Any]) -> Artifact:
    """Commit files that already lie at `uri` by writing the manifest.

    Raises:
        ConflictError: another artefact is committed there.
    """
    if any(entry.path == MANIFEST for entry in files):
        raise StorageError(f"{uri}: no file of an artefact may be called {MANIFEST}; that is its own.")
    artifact = Artifact(uri, kind, tuple(sorted(files, key=lambda entry: entry.path)), meta)
    if exists(join(uri, MANIFEST)):
        committed = open_artifact(uri, kind)
        if committed.digest != artifact.digest:
            raise ConflictError(f"{uri} already holds another {kind}; artefacts are never overwritten.")
        return committed
    entries = [{"path": e.path, "size": e.size, "sha256": e.sha256} for e in artifact.files]
    write_json(
        join(uri, MANIFEST),
        {"format": FORMAT, "kind": kind, "digest": artifact.digest, "files": entries, "meta": meta},
    )
    return artifact


def open_artifact(uri: str, kind: str) -> Artifact:
    """Open a committed artefact, checking that its manifest is whole and each file has its size.

    Raises:
        NotFoundError: nothing is committed there.
        CorruptError: the manifest is damaged, or a file is missing or of another size.
    """
    try:
        document = read_json(join(uri, MANIFEST))
    except NotFoundError as error:
        raise NotFoundError(f"no {kind} is committed at {uri} (there is no {MANIFEST}).") from error
    try:
        if document["format"] != FORMAT:
            raise StorageError(f"{uri} has format {document['format']}; this maas_ray reads format {FORMAT}.")
        files = tuple(FileEntry(e["path"], e["size"], e["sha256"]) for e in document["files"])
        artifact = Artifact(_expand(uri), document["kind"], files, document["meta"])
        promised = document["digest"]
    except KeyError as error:
        raise CorruptError(f"{join(uri, MANIFEST)} lacks {error}.") from error
    except (AttributeError, TypeError) as error:
        raise CorruptError(f"{join(uri, MANIFEST)} is not a manifest: {error}.") from error
    if artifact.digest != promised:
        raise CorruptError(f"{join(uri, MANIFEST)} was changed after it was written: its digest differs.")
    if artifact.kind != kind:
        raise NotFoundError(f"{uri} holds a {artifact.kind}, not a {kind}.")
    check_sizes(artifact.uri, artifact.files)
    return artifact


def check_sizes(uri: str, entries: Iterable[FileEntry]) -> None:
    """Make sure that files are there, each with its size; none of them is read.

    Raises:
        CorruptError: names the first that is missing or of another size.
    """
    fs, root = filesystem(uri)
    with translated(uri):
        fs.invalidate_cache()
        found = {name: info["size"] for name, info in fs.find(root, detail=True).items()}
    for entry in entries:
        size = found.get(f"{root.rstrip('/')}/{entry.path}")
        if size is None:
            raise CorruptError(f"{uri}: {entry.path} is missing.")
        if size != entry.size:
            raise CorruptError(f"{uri}: {entry.path} has {size} bytes; its manifest says {entry.size}.")


def verify(uri: str, entries: Iterable[FileEntry]) -> None:
    """Read files and compare them with their entries.

    Raises:
        CorruptError: names the first that is missing or differs.
    """
    for entry in entries:
        _check(entry, *_digest_at(uri, entry), uri)


def fetch(uri: str, entries: Iterable[FileEntry], directory: Path) -> Path:
    """Download files into a local directory, verifying each on the way. Returns the directory."""
    for entry in entries:
        _fetch(uri, entry, directory / entry.path)
    return directory


def _check(entry: FileEntry, size: int, sha256: str, uri: str) -> None:
    if (size, sha256) != (entry.size, entry.sha256):
        raise CorruptError(
            f"{uri}: {entry.path} is damaged: {size} bytes with sha256 {sha256[:12]}…, its manifest says "
            f"{entry.size} with {entry.sha256[:12]}…. Restore it from a copy, or make the artefact again."
        )


def _digest_at(uri: str, entry: FileEntry) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(join(uri, entry.path)):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def _fetch(uri: str, entry: FileEntry, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as output:
            for chunk in _chunks(join(uri, entry.path)):
                digest.update(chunk)
                size += len(chunk)
                output.write(chunk)
        _check(entry, size, digest.hexdigest(), uri)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _chunks(uri: str) -> Iterator[bytes]:
    fs, path = filesystem(uri)
    with translated(uri), fs.open(path, "rb") as source:
        while chunk := source.read(_CHUNK):
            yield chunk


def _put(uri: str, write: Callable[[Any], Any]) -> None:
    fs, path = filesystem(uri)
    if isinstance(fs, MemoryFileSystem):
        # It shows a file from the moment it is opened, empty; given all bytes at once it does not.
        buffer = io.BytesIO()
        write(buffer)
        fs.pipe_file(path, buffer.getvalue())
        return
    if not isinstance(fs, LocalFileSystem):
        # Object stores make a written object visible when it is closed, whole.
        with fs.open(path, "wb") as target:
            write(target)
        return
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as target:
            write(target)
            target.flush()
            os.fsync(target.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, final)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    _sync_directory(final.parent)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn what a filesystem raises into this platform's errors, once, at the boundary."""
    try:
        yield
    except MaasError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{uri} does not exist.") from error
    except PermissionError as error:
        raise StorageError(f"no permission for {uri}: {error}") from error
    except OSError as error:
        raise StorageError(f"{uri} cannot be read or written: {error}") from error
    except Exception as error:
        if is_local(uri):
            raise
        # Clients of object stores have errors of their own; botocore's of a connection that was lost is no OSError.
        raise StorageError(f"{uri} cannot be read or written: {type(error).__name__}: {error}") from error
