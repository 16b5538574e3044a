"""Reading of files for every format, with decompression by the suffix of their names.

A compressed file that is cut off or damaged ends at the damage and reports it, so that everything before the damage can
be read. Failing storage raises an error, because the content of the file is not known.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from maas_ray import storage
from maas_ray.errors import StorageError

_SUFFIXES = {".gz": "gzip", ".tgz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_ARCHIVES = (".zip", ".7z", ".rar")
_BUFFER = 1 << 18
_AT_ONCE = 1 << 16  # bytes of one read; Arrow loses the bytes of the read in which it meets damage


def usual(*names: str) -> tuple[str, ...]:
    """Patterns of names, plain and with the suffix of each compression."""
    return tuple(name + packed for name in names for packed in ("", ".gz", ".bz2", ".xz", ".zst"))


def codec(uri: str) -> str | None:
    """The compression of a file by its name, or None. A compressed file is not read from the middle."""
    return _SUFFIXES.get(PurePosixPath(uri).suffix.lower())


class Content(io.BufferedReader):
    """The bytes of a file, decompressed."""

    raw: "_Plain"

    @property
    def damage(self) -> str:
        """The reason why it ended early. Empty: it did not, or not yet."""
        return self.raw.damage


def opened(uri: str) -> Content:
    """The content of a file, decompressed; the caller closes it.

    Raises:
        NotFoundError: the file does not exist.
        StorageError: it cannot be read, now or later.
    """
    if PurePosixPath(uri).suffix.lower() in _ARCHIVES:
        raise StorageError(
            f"{uri} is an archive of files; unpack it, or convert it to tar for `format: webdataset`.",
            code="unsupported_archive",
        )
    kind = codec(uri)
    handle = storage.open_file(uri)
    return Content(_Plain(uri, handle) if kind is None else _Unpacked(uri, handle, kind), _BUFFER)


class _Plain(io.RawIOBase):
    """A file of any storage, with the errors of this platform."""

    def __init__(self, uri: str, handle: Any, *, owned: bool = True) -> None:
        self.damage = ""
        self._uri, self._handle, self._owned = uri, handle, owned

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with storage.translated(self._uri):
            content = self._handle.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        with storage.translated(self._uri):
            return int(self._handle.seek(offset, whence))

    def tell(self) -> int:
        return int(self._handle.tell())

    def close(self) -> None:
        if self._owned and not self.closed:
            self._handle.close()
        super().close()


class _Unpacked(_Plain):
    def __init__(self, uri: str, handle: Any, kind: str) -> None:
        super().__init__(uri, handle)
        self._kind, self._position, self._left = kind, 0, b""
        self._unpack = _unpacking(uri, handle, kind)

    def readinto(self, buffer: Any) -> int:
        if self.damage:
            return 0
        try:
            # A fixed number of bytes for every request, so that the same bytes are lost before damage each time.
            content = self._left or self._unpack(_AT_ONCE)
        except StorageError:
            raise
        except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            text = (str(error).splitlines() or [type(error).__name__])[0]
            # This text is part of the file's digest, and so of fingerprints: it must not be reworded.
            self.damage = f"no whole {self._kind} file: {text.rstrip('.')}"
            return 0
        content, self._left = content[: len(buffer)], content[len(buffer) :]
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek forward by reading on, and backward by reading from the beginning."""
        if whence:
            raise io.UnsupportedOperation("a compressed file has no known end")
        if offset < self._position:
            self._handle.seek(0)
            self._unpack = _unpacking(self._uri, self._handle, self._kind)
            self._position, self._left, self.damage = 0, b"", ""
        skipped = bytearray(_AT_ONCE)
        while self._position < offset and self.readinto(memoryview(skipped)[: offset - self._position]):
            pass
        return self._position


_FILES: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda packed: gzip.GzipFile(fileobj=packed),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}


def _unpacking(uri: str, handle: Any, kind: str) -> Callable[[int], bytes]:
    """A function that gives at most the given number of next bytes, and at least one before the end."""
    packed = _Plain(uri, handle, owned=False)
    if kind in _FILES:
        # Unlike `read1`, `read` would lose the bytes before the damage.
        return _FILES[kind](io.BufferedReader(packed, _BUFFER)).read1  # type: ignore[no-any-return]
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), kind).read  # type: ignore[no-any-return]
