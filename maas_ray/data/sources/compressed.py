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

from backports import zstd

from maas_ray import storage
from maas_ray.errors import StorageError

_SUFFIXES = {".gz": "gzip", ".tgz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_ARCHIVES = (".zip", ".7z", ".rar")
_BUFFER = 1 << 18
_AT_ONCE = 1 << 16  # bytes of one read; those of the read that meets damage are lost
_PIECE = 1 << 13  # compressed bytes


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

    @property
    def uri(self) -> str:
        """The file."""
        return self.raw.uri

    @property
    def damaged_at(self) -> int:
        """Position of the damage in the file as it is stored, to a few kilobytes."""
        return self.raw.damaged_at


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
        self.damage, self.damaged_at = "", 0
        self.uri, self._handle, self._owned = uri, handle, owned

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with storage.translated(self.uri):
            content = self._handle.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        with storage.translated(self.uri):
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
        self._packed = _Packed(_Plain(uri, handle, owned=False), _BUFFER)
        self._unpack = _UNPACKERS[kind](self._packed).read1

    def readinto(self, buffer: Any) -> int:
        if self.damage:
            return 0
        taken = self._packed.tell()
        try:
            # A fixed number of bytes for every request, so that the same bytes are lost before damage each time.
            content = self._left or self._unpack(_AT_ONCE)
        except StorageError:
            raise
        except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError, zstd.ZstdError) as error:
            text = (str(error).splitlines() or [type(error).__name__])[0]
            # This text is part of the file's digest, and so of fingerprints: it must not be reworded.
            self.damage = f"no whole {self._kind} file: {text.rstrip('.')}"
            self.damaged_at = taken if self._position else 0
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
            self._packed.seek(0)
            self._unpack = _UNPACKERS[self._kind](self._packed).read1
            self._position, self._left, self.damage, self.damaged_at = 0, b"", "", 0
        skipped = bytearray(_AT_ONCE)
        while self._position < offset and self.readinto(memoryview(skipped)[: offset - self._position]):
            pass
        return self._position


class _Packed(io.BufferedReader):
    """The compressed bytes. They are given in small pieces, so that the position tells where damage begins."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(_PIECE if size is None or size < 0 else min(size, _PIECE))


class _Frames:
    """The content of compressed frames, one after the other.

    Python's own files take a frame whose beginning is damaged for harmless bytes at the end, and everything from there
    on would be lost without a word. Only zeros may stand between frames.
    """

    def __init__(self, packed: _Packed, decompressor: Callable[[], Any]) -> None:
        self._packed, self._new = packed, decompressor
        self._frame: Any = None

    def read1(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        while True:
            piece = b""
            if self._frame is not None and self._frame.eof:
                piece = self._frame.unused_data.lstrip(b"\0")
                while not piece:
                    if not (piece := self._packed.read(_PIECE)):
                        return b""
                    piece = piece.lstrip(b"\0")
                self._frame = self._new()
            elif self._frame is None or self._frame.needs_input:
                self._frame = self._frame or self._new()
                if not (piece := self._packed.read(_PIECE)):
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            if content := self._frame.decompress(piece, size):
                return bytes(content)


def _zstd() -> Any:
    # Files of `zstd --long=31` refer to bytes up to 2 GiB before. The window of other files is as small as they say.
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 31})


_UNPACKERS: dict[str, Callable[[Any], Any]] = {
    # Unlike `read1`, `read` would lose the bytes before the damage.
    "gzip": lambda packed: gzip.GzipFile(fileobj=packed),
    "bzip2": lambda packed: _Frames(packed, bz2.BZ2Decompressor),
    "xz": lambda packed: _Frames(packed, lzma.LZMADecompressor),
    "zstd": lambda packed: _Frames(packed, _zstd),
}
