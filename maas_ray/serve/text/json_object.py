"""Reads a JSON object from text that arrives in pieces: finds its end, and escapes raw line breaks in its strings."""

import json
import re

_OUTSIDE, _INSIDE = re.compile(r'[{}\[\]"]'), re.compile(r'["\\\x00-\x1f]')


class ObjectReader:
    """Reads one object. It counts brackets; whether the object is valid is for the caller to check.

    Attributes:
        complete: the end was reached.
        failed: never; an object that is not valid ends too, or does not.
    """

    failed = False

    def __init__(self) -> None:
        self.complete = False
        self._depth, self._in_string, self._escaped = 0, False, False

    def push(self, text: str, *, final: bool = False) -> tuple[str, int]:
        """Add text.

        Args:
            text: the next piece.
            final: nothing follows. An object needs no more text than it has to be read.

        Returns:
            The text that belongs to the object, and the number of characters that were read.
        """
        parts, at = [], 0
        if self._escaped and text:
            parts.append(text[0])
            at, self._escaped = 1, False
        while not self.complete and at < len(text):
            found = (_INSIDE if self._in_string else _OUTSIDE).search(text, at)
            if found is None:
                parts.append(text[at:])
                return "".join(parts), len(text)
            parts.append(text[at : found.start()])
            at, character = found.end(), found[0]
            if character == "\\":
                parts.append(text[at - 1 : at + 1])
                self._escaped = at == len(text)
                at = min(at + 1, len(text))
            elif character < " ":  # models write line breaks as they are, which JSON forbids
                parts.append(json.dumps(character)[1:-1])
            else:
                parts.append(character)
                self._count(character)
        return "".join(parts), at

    def _count(self, character: str) -> None:
        if character == '"':
            self._in_string = not self._in_string
        else:
            self._depth += 1 if character in "{[" else -1
            self.complete = self._depth == 0
