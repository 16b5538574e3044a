"""Reads a call's arguments from parameters between tags, `<parameter=city>Rome</parameter>`, as a JSON object.

The tags do not say a value's type, so the function's JSON schema decides. Text that does not fit it stays a string: the
function then reports what is wrong, which the model can read.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_WORDS = {"None": "null", "True": "true", "False": "false"}  # some templates write Python's
_MAX_SCHEMAS = 64  # that are read for the types of one parameter: references may lead in a circle


@dataclass(frozen=True)
class Tags:
    """Patterns of the tags around parameters, which also match in part.

    Args:
        open: from before a parameter to its value. The group `key` is its name.
        close: the end of a value. What must follow it is part of the pattern, so that a value may contain the tag.
        end: the end of the arguments.
    """

    open: Any
    close: Any
    end: Any


class TaggedReader:
    """Reads one call's parameters.

    Args:
        tags: the tags around them.
        schema: the JSON schema of the arguments.

    Attributes:
        complete: the end was reached.
        failed: there is something else than a parameter or the end.
    """

    def __init__(self, tags: Tags, schema: Mapping[str, Any]) -> None:
        self.complete = self.failed = False
        self._tags, self._schema = tags, schema
        self._read: Callable[[list[str], str, bool], int | None] = self._read_tag
        self._count = 0
        self._types: frozenset[str] = frozenset()
        self._value = ""  # the text so far, of a parameter whose type is not known before its end

    def push(self, text: str, *, final: bool = False) -> tuple[str, int]:
        """Add text.

        Args:
            text: the next piece, after what earlier calls left unread.
            final: nothing follows.

        Returns:
            The JSON text that has become certain, and the number of characters that were read.
        """
        parts: list[str] = []
        at = 0
        while not (self.complete or self.failed):
            read = self._read(parts, text[at:], final)
            if read is None:
                break
            at += read
        return "".join(parts), at

    # Each state returns the number of characters that it read. None: it needs more text.

    def _read_tag(self, parts: list[str], text: str, final: bool) -> int | None:
        opened, ended = (pattern.match(text, partial=not final) for pattern in (self._tags.open, self._tags.end))
        if opened and not opened.partial:
            key = opened["key"].strip()
            self._types, self._value = types_of(self._schema.get("properties"), key, self._schema), ""
            parts.append(f"{', ' if self._count else '{'}{json.dumps(key, ensure_ascii=False)}: ")
            if self._is_string:
                parts.append('"')
            self._count += 1
            self._read = self._read_value
            return int(opened.end())
        if ended and not ended.partial:
            self.complete = True
            parts.append("}" if self._count else "{}")
            return int(ended.end())
        self.failed = not (opened or ended)
        return None

    def _read_value(self, parts: list[str], text: str, final: bool) -> int | None:
        closed = self._tags.close.search(text, partial=not final)
        value = text if closed is None else text[: closed.start()]
        if self._is_string:
            parts.append(json.dumps(value, ensure_ascii=False)[1:-1])
        else:
            self._value += value
        if closed is None or closed.partial:
            # The text is read, so a later call does not get it again.
            return len(value) or None
        parts.append('"' if self._is_string else to_json(self._value, self._types))
        self._read = self._read_tag
        return int(closed.end())

    @property
    def _is_string(self) -> bool:
        """True for a parameter that is a string whatever its text."""
        return self._types == {"string"}


def types_of(properties: Any, key: str, root: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that a parameter may have. Empty: its schema, which may be any document, does not say.

    Args:
        properties: the schemas of parameters, by name.
        key: the parameter.
        root: the document that references lead into.
    """
    types: set[str] = set()
    pending = [properties.get(key)] if isinstance(properties, Mapping) else []
    for _ in range(_MAX_SCHEMAS):
        schema = pending.pop() if pending else None
        if not isinstance(schema, Mapping):
            continue
        named = schema.get("type")
        types.update(one for one in (named if isinstance(named, list) else [named]) if isinstance(one, str))
        if named is None:
            values = [*_list(schema, "enum"), *(value for word, value in schema.items() if word == "const")]
            types.update(map(_type, values))
        pending += [inner for word in ("anyOf", "oneOf", "allOf") for inner in _list(schema, word)]
        if "$ref" in schema:
            pending.append(_referenced(schema["$ref"], root))
    return frozenset(types)


def _list(schema: Mapping[str, Any], word: str) -> list[Any]:
    value = schema.get(word)
    return value if isinstance(value, list) else []


def _referenced(reference: Any, root: Any) -> Any:
    for name in str(reference).removeprefix("#").strip("/").split("/"):
        root = root.get(name) if isinstance(root, Mapping) else None
    return root


def to_json(text: str, types: frozenset[str]) -> str:
    """A parameter's text as JSON.

    Args:
        text: the text between its tags.
        types: the JSON types that it may have. Empty: any.
    """
    written = text.strip()
    written = _WORDS.get(written, written)
    try:
        value = json.loads(written, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        value = text
    kind = _type(value)
    if kind == "number" and value.is_integer() and "integer" in types and "number" not in types:
        written, kind = str(int(value)), "integer"
    fits = not types or kind in types or (kind == "integer" and "number" in types)
    return written if kind != "string" and fits else json.dumps(text, ensure_ascii=False)


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _type(value: Any) -> str:
    """The JSON type of a value."""
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", type(None): "null"}
    return kinds.get(type(value), "object")
