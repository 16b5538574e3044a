"""Multipart forms in memory: fields as text, files as bytes. Nothing is written to disk."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from maas_ray.errors import RequestError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM_TYPE = "multipart/form-data"
_MAX_PARTS = 64


def is_form(content_type: str) -> bool:
    """True if a `Content-Type` is that of a multipart form."""
    return content_type.partition(";")[0].strip().lower() == FORM_TYPE


def parse_form(data: bytes, content_type: str) -> list[tuple[str, str | bytes]]:
    """The parts of a form with their names, in order: text, or the bytes of a file.

    Raises:
        RequestError: the body is not a complete form.
    """
    reader = _Reader()
    try:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise FormParserError("its Content-Type does not name a boundary")
        MultipartParser(boundary, reader.callbacks()).write(data)
        if not reader.ended:
            raise FormParserError("it does not end with its boundary")
        return [part.read() for part in reader.parts]
    except ValueError as error:  # from the parser, or from bytes that are not text
        raise RequestError(f"The body is not a valid {FORM_TYPE}: {error}.", code="invalid_form") from error


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)

    def read(self) -> tuple[str, str | bytes]:
        _, options = parse_options_header(self.headers.get(b"content-disposition"))
        if b"name" not in options:
            raise FormParserError("a part does not have a name in its Content-Disposition")
        content = bytes(self.content)
        return options[b"name"].decode(), content if b"filename" in options else content.decode()


class _Reader:
    """Collects the parser's events."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.ended = False
        self._name, self._value = bytearray(), bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_part_data": lambda data, start, end: self.parts[-1].content.extend(memoryview(data)[start:end]),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == _MAX_PARTS:
            raise FormParserError(f"it has more than {_MAX_PARTS} parts")
        self.parts.append(_Part())

    def _header(self) -> None:
        self.parts[-1].headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end(self) -> None:
        self.ended = True
