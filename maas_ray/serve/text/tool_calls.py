"""A parser for answers with tool calls.

The format is chosen by the chat template: the one whose parser reads back a call that the template rendered. The parser
never loses text. A call that is not valid stays in the content, except in a stream that has already sent its name.
Transformers' `ResponseParser` raises an error for such a call, and vLLM's parsers need vLLM. Knows nothing of any API.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from maas_ray.errors import RequestError
from maas_ray.serve.text.call_formats import FORMATS, CallFormat, Shape
from maas_ray.serve.text.json_object import ObjectReader
from maas_ray.serve.text.tagged_arguments import TaggedReader
from maas_ray.serve.text.types import CallPiece

if TYPE_CHECKING:
    from maas_ray.tasks.text.chat import ChatTemplate

_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city"}}},
    },
}
_USER = {"role": "user", "content": "Weather?"}
_FUNCTION: Any = {"name": "get_weather", "arguments": {"city": "Rome"}}
_CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "abcdef123", "type": "function", "function": _FUNCTION}],
}


def format_of(template: "ChatTemplate") -> CallFormat | None:
    """The format in which a template renders calls. None: it renders none, or in another format."""
    try:
        prompts = template.render([_USER], [_TOOL]), template.whole([_USER], [_TOOL])
        whole = template.whole([_USER, _CALLING], [_TOOL])
    except RequestError:
        return None
    # A prompt may end with the beginning of an answer without calls, and a call without it.
    answers = [whole[_same(prompt, whole) :] for prompt in prompts]
    return next((one for one in FORMATS.values() for answer in answers if _reads(one, answer)), None)


def _same(one: str, other: str) -> int:
    """Length of the beginning that two texts share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((position for position, (left, right) in pairs if left != right), min(len(one), len(other)))


def _reads(one: CallFormat, answer: str) -> bool:
    functions = {_FUNCTION["name"]: _TOOL["function"]["parameters"]}
    pieces = CallParser(one, functions, streamed=False).push(answer, final=True)
    calls = [(piece.name, json.loads(piece.arguments)) for piece in pieces if isinstance(piece, CallPiece)]
    return calls == [(_FUNCTION["name"], _FUNCTION["arguments"])]


class CallParser:
    """Separates an answer's calls from its text, as both grow.

    Args:
        format: how the model writes calls.
        functions: the functions that it may call, with the JSON schemas of their arguments. A call of another one is
            left to the client, unless it has no mark.
        streamed: return a call in pieces. Otherwise a call is returned once it is complete and valid.
    """

    def __init__(self, format: CallFormat, functions: Mapping[str, Mapping[str, Any]], *, streamed: bool) -> None:
        self._format, self._functions, self._streamed = format, functions, streamed
        self._buffer = ""  # text that has not been read
        self._gap = ""  # white space before a call, which is content if the call is not valid
        self._begun = False
        self._read = self._read_text
        self.calls = 0
        """Complete calls."""

    def push(self, text: str, *, final: bool = False) -> list[str | CallPiece]:
        """Add text; returns the pieces of content and of calls that have become certain.

        Args:
            text: the next piece of the answer.
            final: nothing follows.
        """
        self._buffer += text
        pieces: list[str | CallPiece] = []
        while self._read(pieces, final):
            pass
        return pieces

    # Each state reads from the buffer. It returns True if the next state may go on, False if it needs more text.

    def _read_text(self, pieces: list[str | CallPiece], final: bool) -> bool:
        text = self._buffer
        if not self._begun and (text.strip() or final):
            self._begun = True
            if self._format.bare and text.lstrip().startswith(self._format.bare):
                self._read = self._read_head
                return True
        marks = [position for mark in self._format.marks if (position := text.find(mark)) >= 0]
        if marks:
            before = text[: min(marks)]
            self._content(pieces, before.rstrip())
            self._gap = before[len(before.rstrip()) :]
            self._buffer, self._read = text[min(marks) :], self._read_head
            return True
        end = len(text)
        if not final:
            end -= max((overlap(text, mark) for mark in self._format.marks), default=0)
            end = len(text[:end].rstrip())  # white space before a call is not content
        elif self.calls and not text.strip():
            end = 0
        self._content(pieces, text[:end])
        self._buffer = text[end:]
        return False

    def _read_head(self, pieces: list[str | CallPiece], final: bool) -> bool:
        for shape in self._format.shapes:
            match = shape.head.match(self._buffer, partial=not final)
            if match is None:
                continue
            if match.partial:
                return False
            name = match.groupdict().get("name") or ""
            if self._unknown(name) and not shape.whole:
                break
            self._shape, self._name, self._reader = shape, name, self._reader_of(shape, name)
            self._raw, self._arguments = [self._gap, match[0]], [""]
            self._gap = ""
            self._buffer, self._read = self._buffer[match.end() :], self._read_arguments
            if self._at_once:
                pieces.append(CallPiece(self.calls, name, ""))
            return True
        mark = next((mark for mark in self._format.marks if self._buffer.startswith(mark)), "")
        self._content(pieces, self._gap + mark)
        self._gap = ""
        self._buffer, self._read = self._buffer[len(mark) :], self._read_text
        return True

    def _reader_of(self, shape: Shape, name: str) -> ObjectReader | TaggedReader:
        return ObjectReader() if shape.tags is None else TaggedReader(shape.tags, self._functions.get(name, {}))

    def _read_arguments(self, pieces: list[str | CallPiece], final: bool) -> bool:
        text, read = self._reader.push(self._buffer, final=final)
        self._raw.append(self._buffer[:read])
        self._arguments.append(text)
        self._buffer = self._buffer[read:]
        if self._at_once and text:
            pieces.append(CallPiece(self.calls, "", text))
        if not (self._reader.complete or self._reader.failed or final):
            return False
        if not self._at_once:
            call = self._call() if self._reader.complete else None
            if call is None:
                self._content(pieces, "".join(self._raw))
                self._read = self._read_text
                return True
            pieces.append(CallPiece(self.calls, *call))
        self.calls += 1
        self._read = self._read_tail
        return True

    def _read_tail(self, pieces: list[str | CallPiece], final: bool) -> bool:
        match = self._shape.tail.match(self._buffer, partial=not final)
        if match is not None and match.partial:
            return False
        self._read = self._read_text
        if match is None:
            match = self._shape.short_tail.match(self._buffer)
        elif match.groupdict().get("more") is not None:
            self._read = self._read_head
        if match is not None:
            self._buffer = self._buffer[match.end() :]
        return True

    @property
    def _at_once(self) -> bool:
        """True if the call in progress is returned in pieces."""
        return self._streamed and not self._shape.whole

    def _unknown(self, name: str) -> bool:
        """True for an object that only looks like a call: it has no mark, and names no function."""
        return bool(self._format.bare) and name not in self._functions

    def _call(self) -> tuple[str, str] | None:
        """The name and the arguments of a complete call. None: it is not valid."""
        text = "".join(self._arguments)
        try:
            value = json.loads(text)
            if not self._shape.whole:
                return self._name, text
            value = value["function"] if isinstance(value.get("function"), dict) else value
            name, arguments = value.get("name"), value.get("arguments", value.get("parameters")) or {}
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            return None
        if not isinstance(name, str) or not name or not isinstance(arguments, dict) or self._unknown(name):
            return None
        return name, json.dumps(arguments, ensure_ascii=False)

    @staticmethod
    def _content(pieces: list[str | CallPiece], text: str) -> None:
        if text:
            pieces.append(text)


def overlap(text: str, mark: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
