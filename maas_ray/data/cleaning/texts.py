"""What of a row is text, for the steps that look at it or change it.

A text is a string, UTF-8 bytes where a whole file is a row, a list of tokens, or a chat: a list of messages with
`content`. Files of images and audio are none, nor are the classes that a task learns.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import Field

from maas_ray.data.cleaning.base import CleaningStep, Notes, changed, named, names_in, value
from maas_ray.data.names import FILE_COLUMNS
from maas_ray.tasks.rows import REST, Row

_CLASSES = ("label", "labels", "tags")
_NOT_SAID = ("role", "type", "id", "tool_call_id")
"""Fields of a message that nobody wrote as text."""


class TextStep(CleaningStep):
    """A step that looks at texts."""

    columns: tuple[str, ...] | None = Field(None, min_length=1)
    """Columns whose texts it looks at. None: all texts that the task takes by name, chats among them."""

    @property
    def reads(self) -> tuple[str, ...]:
        return self.columns or ()

    def default_columns(self, row: Row) -> list[str]:
        """The columns that it looks at where none is named.

        Raises:
            ValueError: none is text.
        """
        names = [name for name in row if name != REST and "/" not in name and name not in (*FILE_COLUMNS, *_CLASSES)]
        found = [name for name in names if row[name] is None or isinstance(row[name], str | bytes | list)]
        if not found:
            raise ValueError(f"no column of the task is text; name one by `columns` ({', '.join(names_in(row))})")
        return found

    def contents(self, row: Row) -> dict[str, Any]:
        """What stands in the columns that it looks at.

        Raises:
            ValueError: one is not there, or none is text.
        """
        if self.columns is not None:
            return {name: named(row, name) for name in self.columns}
        return {name: value(row, name) for name in self.default_columns(row)}

    def texts(self, row: Row) -> Iterator[str]:
        """The text of each column; a chat is one text, its messages apart by blank lines. Missing ones are left out.

        Raises:
            ValueError: a named column is not there or is no text, or no column is text.
        """
        for name, content in self.contents(row).items():
            if content is not None:
                yield _read(name, content)

    def mapped(self, row: Row, change: Callable[[str], str], decode: Callable[[bytes], str] | None = None) -> Row:
        """The row with its texts changed; the same object where none is.

        Args:
            row: what has them.
            change: from a text to what stands in its place.
            decode: from a whole file to its text. None: it must be UTF-8.

        Raises:
            ValueError: a named column is not there, or holds bytes that are no text.
        """
        for name, content in self.contents(row).items():
            new = _changed(content, change, decode or decoded)
            if new is not content:
                row = changed(row, name, new)
        return row


class TextFilter(TextStep):
    """A step that leaves rows out for what their texts are."""

    def clean(self, row: Row, notes: Notes) -> Row:
        for text in self.texts(row):
            self.check(text)
        return row

    @abstractmethod
    def check(self, text: str) -> None:
        """Return if a text may stay.

        Raises:
            Dropped: it may not.
        """


class TextMapper(TextStep):
    """A step that changes texts: all that a row has, those beside the task's own included."""

    columns: tuple[str, ...] | None = Field(None, min_length=1)
    """Columns whose texts it changes. None: all texts of the row, chats among them; not those called `label`, `labels`
    or `tags`."""

    def default_columns(self, row: Row) -> list[str]:
        return [name for name in names_in(row) if name not in (*FILE_COLUMNS, *_CLASSES)]


def _changed(content: Any, change: Callable[[str], str], decode: Callable[[bytes], str]) -> Any:
    """A value with its texts changed; the same object where none is."""
    if isinstance(content, bytes):
        text = decode(content)
        new = change(text)
        return content if new == text and text.encode(errors="surrogatepass") == content else new
    if isinstance(content, str):
        new = change(content)
        return content if new == content else new
    if isinstance(content, dict):
        said = {key: content[key] for key in content if key not in _NOT_SAID}
        made = {key: _changed(inner, change, decode) for key, inner in said.items()}
        return content if all(made[key] is said[key] for key in said) else {**content, **made}
    if isinstance(content, list):
        items = [_changed(inner, change, decode) for inner in content]
        return content if all(new is old for new, old in zip(items, content, strict=True)) else items
    return content


def decoded(content: bytes) -> str:
    """A whole file as UTF-8, without a byte order mark.

    Raises:
        ValueError: it is none.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8: byte {content[error.start]:#04x} at {error.start}; put the step `fix_text` before this one"
        ) from error


def _read(name: str, content: Any) -> str:
    if isinstance(content, bytes):
        return decoded(content)
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        if all(isinstance(item, str) for item in content):
            return " ".join(content)
        if all(isinstance(item, dict) for item in content):
            return "\n\n".join(text for message in content for text in _said(message))
    raise ValueError(f"column {name!r} holds a {type(content).__name__}, no text; choose others by `columns`")


def _said(message: dict[str, Any]) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):  # parts, as OpenAI's API has them
        yield from (part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
