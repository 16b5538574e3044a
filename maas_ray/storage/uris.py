"""Files at any fsspec URI: atomic writes, and one set of errors for every filesystem.

Knows nothing of artifacts.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from maas_ray.errors import CorruptError, MaasError, NotFoundError, StorageError

CHUNK = 1 << 20
_SAFE_PART = re.compile(r"^(?!\.{1,2}$)[^/\\\0]+$")


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URI (or local path) and the path on it."""
    try:
        fs, path = fsspec.core.url_to_fs(absolute(uri))
    except ImportError as error:
        fix = "pip install 'maas-ray[s3]'" if uri.startswith(("s3://", "s3a://")) else str(error)
        raise StorageError(
            f"no access to {uri!r}: its library is not installed. {fix}", code="missing_library"
        ) from error
    except ValueError as error:
        raise StorageError(f"no access to {uri!r}: {error}", code="unknown_scheme") from error
    return fs, path


def is_local(uri: str) -> bool:
    """True for a URI on a local (or mounted) filesystem."""
    return local_path(uri) is not None


def local_path(uri: str) -> Path | None:
    """The path of a URI on a local filesystem, else None."""
    fs, path = filesystem(uri)
    return Path(path) if isinstance(fs, LocalFileSystem) else None


def join(uri: str, *parts: str) -> str:
    """A URI below another. A part must not climb out of it."""
    for part in parts:
        check_relative(part)
    scheme, separator, path = absolute(uri).rpartition("://")
    return scheme + separator + "/".join([path.rstrip("/"), *parts])


def check_relative(path: str) -> str:
    """The path itself, if it is relative, POSIX and does not climb; otherwise a `StorageError`."""
    if not path or path.startswith("/") or not all(_SAFE_PART.match(part) for part in path.split("/")):
        raise StorageError(
            f"{path!r} is not a plain relative path; `/` at the start, `..` and empty parts are not allowed.",
            code="path_not_relative",
        )
    return path


def absolute(uri: str) -> str:
    """A URI as it is; a local path without `~`, absolute."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def read_bytes(uri: str) -> bytes:
    """All bytes of a file.

    Raises:
        NotFoundError: the file does not exist.
        StorageError: the file cannot be read.
    """
    fs, path = filesystem(uri)
    with translated(uri):
        return bytes(fs.cat_file(path))


def open_file(uri: str) -> IO[bytes]:
    """A seekable binary file to read from. The caller closes it."""
    fs, path = filesystem(uri)
    with translated(uri):
        return cast(IO[bytes], fs.open(path, "rb"))


def write_bytes(uri: str, data: bytes) -> None:
    """Put a file atomically: a reader sees either the old content or the new."""
    with translated(uri):
        _write_atomically(uri, lambda target: target.write(data))


def read_json(uri: str) -> Any:
    """A JSON document.

    Raises:
        CorruptError: the file is not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise CorruptError(f"{uri} is not valid JSON: {error}", code="invalid_json") from error


def write_json(uri: str, document: Any) -> None:
    """Put a JSON document atomically, indented."""
    write_bytes(uri, (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def exists(uri: str) -> bool:
    """True if a file or directory exists."""
    fs, path = filesystem(uri)
    with translated(uri):
        return bool(fs.exists(path))


def modified(uri: str) -> datetime | None:
    """The time a file was written; None if the filesystem does not record it."""
    fs, path = filesystem(uri)
    with translated(uri):
        try:
            time: datetime = fs.modified(path)
        except NotImplementedError:
            return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def list_directory(uri: str) -> list[str]:
    """Names directly below a URI, sorted; empty if the directory does not exist."""
    fs, path = filesystem(uri)
    with translated(uri):
        fs.invalidate_cache()
        try:
            children = {PurePosixPath(name) for name in fs.ls(path, detail=False)}
        # `isdir` would not do: it is False for storage that cannot be reached.
        except FileNotFoundError:
            return []
    return sorted(name.name for name in children - {PurePosixPath(path)})


def delete(uri: str) -> None:
    """Remove a file or directory tree, if it exists."""
    fs, path = filesystem(uri)
    with translated(uri):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def put(uri: str, write: Callable[[Any], Any]) -> tuple[int, str]:
    """Put a file atomically; `write` is called with the binary file to write to. Returns its size and sha256."""
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
        _write_atomically(uri, through)
    return written.size, written.sha256.hexdigest()


def upload(local: Path, uri: str) -> tuple[int, str]:
    """Put a local file atomically. Returns its size and sha256."""
    with local.open("rb") as source:
        return put(uri, lambda target: shutil.copyfileobj(source, target, CHUNK))


class _Digesting:
    """A file to write to that counts and digests the bytes. It keeps the error of a write, which `torch.save` hides."""

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
    """Copy a file of an artifact to another URI: a hard link on a local disk, a server-side copy in an object store.

    A link is enough, because files of artifacts are never written to.
    """
    (fs, path), (other, final) = filesystem(source), filesystem(target)
    with translated(target):
        if isinstance(fs, LocalFileSystem) and isinstance(other, LocalFileSystem):
            Path(final).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, final)
                _sync_directory(Path(final).parent)
            except FileNotFoundError:
                raise
            except OSError:  # another disk, or a filesystem without hard links
                upload(Path(path), target)
        elif fs is other:
            fs.cp_file(path, final)
        else:
            with fs.open(path, "rb") as opened:
                _write_atomically(target, lambda file: shutil.copyfileobj(opened, file, CHUNK))


def chunks(uri: str) -> Iterator[bytes]:
    """The bytes of a file, a chunk at a time."""
    fs, path = filesystem(uri)
    with translated(uri), fs.open(path, "rb") as source:
        while chunk := source.read(CHUNK):
            yield chunk


def _write_atomically(uri: str, write: Callable[[Any], Any]) -> None:
    fs, path = filesystem(uri)
    if isinstance(fs, MemoryFileSystem):
        # Opening a file here makes it visible, empty. Piping all bytes at once does not.
        buffer = io.BytesIO()
        write(buffer)
        fs.pipe_file(path, buffer.getvalue())
        return
    if not isinstance(fs, LocalFileSystem):
        # Object stores make an object visible, whole, when it is closed.
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
    """Translate a filesystem's exceptions into this platform's errors."""
    try:
        yield
    except MaasError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{uri} does not exist.") from error
    except PermissionError as error:
        raise StorageError(f"no permission for {uri}: {error}", code="permission_denied") from error
    except OSError as error:
        raise StorageError(f"{uri} cannot be read or written: {error}") from error
    except Exception as error:
        if is_local(uri):
            raise
        # Clients of object stores raise their own types; botocore's ConnectionError is not an OSError.
        raise StorageError(f"{uri} cannot be read or written: {type(error).__name__}: {error}") from error
