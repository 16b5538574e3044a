"""Files to read from, decompressed where their names say so, one way for every format.

A compressed file that is cut off or damaged ends where the damage begins, and says so: what stands before it can be
read. Storage that fails raises, since what it holds is not known.
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
_AT_ONCE = 1 << 16  # bytes of a compressed file; Arrow gives none of those that it had when it met the damage


def usual(*names: str) -> tuple[str, ...]:
    """Patterns of names, plain and with the suffix of each compression."""
    return tuple(name + packed for name in names for packed in ("", ".gz", ".bz2", ".xz", ".zst"))


def codec(uri: str) -> str | None:
    """What a file's name says that it is compressed with; such a file is not read from the middle."""
    return _SUFFIXES.get(PurePosixPath(uri).suffix.lower())


class Content(io.BufferedReader):
    """The bytes of a file, decompressed."""

    raw: "_Plain"

    @property
    def damage(self) -> str:
        """Why it ended before its end. Empty: it did not, or not yet."""
        return self.raw.damage


def opened(uri: str) -> Content:
    """A file's content to read from; the caller closes it.

    Raises:
        NotFoundError: there is no such file.
        StorageError: it cannot be read, then or later.
    """
    if PurePosixPath(uri).suffix.lower() in _ARCHIVES:
        raise StorageError(f"{uri} is an archive of files; unpack it, or make it a tar for `format: webdataset`.")
    kind = codec(uri)
    handle = storage.open_file(uri)
    return Content(_Plain(uri, handle) if kind is None else _Unpacked(uri, handle, kind), _BUFFER)


class _Plain(io.RawIOBase):
    """A file of any storage, whose errors are this platform's."""

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
        self._kind, self._place, self._left = kind, 0, b""
        self._unpack = _unpacking(uri, handle, kind)

    def readinto(self, buffer: Any) -> int:
        if self.damage:
            return 0
        try:
            # Always as much, however much is wanted: so what is lost before damage is the same each time.
            content = self._left or self._unpack(_AT_ONCE)
        except StorageError:
            raise
        except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            told = (str(error).splitlines() or [type(error).__name__])[0]
            self.damage = f"no whole {self._kind} file: {told.rstrip('.')}"
            return 0
        content, self._left = content[: len(buffer)], content[len(buffer) :]
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        """Forward by reading; backward by reading from the beginning."""
        if whence:
            raise io.UnsupportedOperation("a compressed file has no known end")
        if offset < self._place:
            self._handle.seek(0)
            self._unpack = _unpacking(self._uri, self._handle, self._kind)
            self._place, self._left, self.damage = 0, b"", ""
        skipped = bytearray(_AT_ONCE)
        while self._place < offset and self.readinto(memoryview(skipped)[: offset - self._place]):
            pass
        return self._place


_FILES: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda packed: gzip.GzipFile(fileobj=packed),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}


def _unpacking(uri: str, handle: Any, kind: str) -> Callable[[int], bytes]:
    """What gives the next bytes of a compressed file, at most so many, at least one before its end."""
    packed = _Plain(uri, handle, owned=False)
    if kind in _FILES:
        # Of what stands before the damage, `read` would give nothing.
        return _FILES[kind](io.BufferedReader(packed, _BUFFER)).read1  # type: ignore[no-any-return]
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), kind).read  # type: ignore[no-any-return]
