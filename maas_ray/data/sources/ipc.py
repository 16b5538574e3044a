"""Record batches of Arrow IPC: files by their footer, streams message by message.

A file is a stream between a magic number and a footer, which lists its batches. Only the footer says where they are:
Polars writes a schema that no stream begins with. A file that lost its footer, because it was cut off, is read as a
stream: that gives all batches before the end. Rows are counted without decoding any, by the head of each message.
(Arrow Columnar Format, "Serialization and Interprocess Communication"; `format/Message.fbs`, `format/File.fbs`.)
"""

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

from maas_ray.errors import InvalidError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"ARROW1\0\0"
_END = b"ARROW1"
_BLOCK = struct.Struct("<qi4xq")  # offset, bytes of the head, bytes of the body
_HEADER, _LENGTH, _BATCHES = 2, 0, 3  # fields of Message, RecordBatch and Footer


class Batch(NamedTuple):
    """A record batch: the byte at which it begins, its rows, and a function that decodes it.

    Or, with an error, the unreadable rest of the file, as one row.
    """

    byte: int
    rows: int
    load: "Callable[[], pa.RecordBatch] | None" = None
    error: str = ""


class Ipc(Protocol):
    """An open file or stream."""

    schema: "pa.Schema"

    @property
    def divisible(self) -> bool:
        """True if batches can be read without those before them."""

    def batches(self, start: int | None = None) -> Iterator[Batch]:
        """The batches from a byte on, or from the first one."""


def opened_ipc(handle: IO[bytes]) -> Ipc:
    """The batches of a file.

    Raises:
        InvalidError: it is not Arrow IPC.
        StorageError: it cannot be read.
    """
    import pyarrow as pa

    try:
        return _File(handle)
    except StorageError:
        raise
    except (OSError, ValueError, struct.error, pa.ArrowException):
        pass  # it is a stream, or was cut off
    try:
        return _Stream(handle)
    except StorageError:
        raise
    except (EOFError, OSError, ValueError, pa.ArrowException) as error:
        raise InvalidError("not_arrow", f"not readable Arrow: {first_line(error)}") from error


class _File:
    def __init__(self, handle: IO[bytes]) -> None:
        import pyarrow as pa

        self._handle, self._reader = handle, pa.ipc.open_file(pa.PythonFile(handle, mode="r"))
        self.schema = self._reader.schema
        self._blocks = _blocks(handle)
        if len(self._blocks) != self._reader.num_record_batches:
            raise InvalidError("not_arrow", "the footer lists other batches than Arrow reads")

    @property
    def divisible(self) -> bool:
        return True

    def batches(self, start: int | None = None) -> Iterator[Batch]:
        for index, (byte, head) in enumerate(self._blocks):
            if start is None or byte >= start:
                self._handle.seek(byte)
                yield Batch(byte, _rows(self._handle.read(head)), partial(self._reader.get_batch, index))


class _Stream:
    def __init__(self, handle: IO[bytes]) -> None:
        import pyarrow as pa

        self._handle = handle
        self._rewind()
        self.schema = pa.ipc.read_schema(pa.ipc.read_message(pa.PythonFile(handle, mode="r")))

    @property
    def divisible(self) -> bool:
        import pyarrow as pa

        def inside(kind: Any) -> bool:
            return pa.types.is_dictionary(kind) or any(inside(kind.field(at).type) for at in range(kind.num_fields))

        return not any(inside(kind) for kind in self.schema.types)

    def batches(self, start: int | None = None) -> Iterator[Batch]:
        import pyarrow as pa

        if not self.divisible:
            yield from self._in_order()
            return
        if start is not None:
            self._handle.seek(start)
        file = pa.PythonFile(self._handle, mode="r")
        while True:
            byte = self._handle.tell()
            try:
                message = pa.ipc.read_message(file)
            except EOFError:
                if self._handle.tell() == byte:  # the end mark is missing
                    yield Batch(byte, 1, error="the file ends without its end mark; it may have been cut off")
                return
            except StorageError:
                raise
            except (OSError, ValueError, pa.ArrowException) as error:
                yield Batch(byte, 1, error=f"cut off or damaged from byte {byte} on: {first_line(error)}")
                return
            rows = _length(message.metadata.to_pybytes())
            yield Batch(byte, rows, partial(pa.ipc.read_record_batch, message, self.schema))

    def _in_order(self) -> Iterator[Batch]:
        import pyarrow as pa

        self._rewind()
        byte = 0
        try:
            for batch in pa.ipc.open_stream(pa.PythonFile(self._handle, mode="r")):
                byte = self._handle.tell()
                yield Batch(byte, batch.num_rows, lambda batch=batch: batch)  # type: ignore[misc]
        except StorageError:
            raise
        except (EOFError, OSError, ValueError, pa.ArrowException) as error:
            yield Batch(byte, 1, error=f"cut off or damaged: {first_line(error)}")

    def _rewind(self) -> None:
        self._handle.seek(0)
        self._handle.seek(len(_MAGIC) if self._handle.read(len(_MAGIC)) == _MAGIC else 0)


def _blocks(handle: IO[bytes]) -> list[tuple[int, int]]:
    """The start of each record batch of a file, and the bytes of its head."""
    end = handle.seek(0, 2) - len(_END) - 4
    handle.seek(end)
    size = _number("<i", handle.read(4), 0)
    handle.seek(end - size)
    footer = handle.read(size)
    at = _field(footer, _number("<I", footer, 0), _BATCHES)
    if at is None:
        return []
    at += _number("<I", footer, at)
    count = _number("<I", footer, at)
    return [_BLOCK.unpack_from(footer, at + 4 + index * _BLOCK.size)[:2] for index in range(count)]


def _rows(head: bytes) -> int:
    """The rows of a batch by the head of its message; 1 if the head is damaged."""
    try:
        start = 8 if head.startswith(b"\xff\xff\xff\xff") else 4
        return _length(head[start:])
    except struct.error:
        return 1


def _length(message: bytes) -> int:
    """The rows of a record batch, from its message."""
    at = _field(message, _number("<I", message, 0), _HEADER)
    if at is None:
        return 0
    at = _field(message, at + _number("<I", message, at), _LENGTH)
    return 0 if at is None else _number("<q", message, at)


def _field(content: bytes, table: int, number: int) -> int | None:
    """The position of a field in a table of a FlatBuffer. None: the field has its default."""
    fields = table - _number("<i", content, table)
    if 4 + 2 * number >= _number("<H", content, fields):
        return None
    offset = _number("<H", content, fields + 4 + 2 * number)
    return table + offset if offset else None


def _number(kind: str, content: bytes, at: int) -> int:
    if at < 0:
        raise struct.error("a position before the beginning")
    return int(struct.unpack_from(kind, content, at)[0])


def first_line(error: Exception) -> str:
    """The first line of an error, because Arrow's errors have many lines."""
    return (str(error).splitlines() or [type(error).__name__])[0]
