"""Steps over text: which values of a row are text, and how steps read and change them.

A text is a string, UTF-8 bytes if a whole file is a row, a list of tokens, or a chat: a list of messages with
`content`. Files of images and audio are not text, and neither are the classes that a task learns.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import Field

from maas_ray.data.cleaning.base.step import CleaningStep, Notes, changed, named, names_in, value
from maas_ray.data.names import FILE_COLUMNS
from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import REST, Row

_CLASSES = ("label", "labels", "tags")
_NO_TEXT = ("role", "from", "type", "id", "tool_call_id")
"""Fields of a message that are not text."""


class TextStep(CleaningStep):
    """A step over texts."""

    columns: tuple[str, ...] | None = Field(None, min_length=1)
    """Columns whose texts are checked. None: all texts that the task takes by name, chats included."""

    @property
    def reads(self) -> tuple[str, ...]:
        return self.columns or ()

    def default_columns(self, row: Row) -> list[str]:
        """The columns to use if the user named none.

        Raises:
            InvalidError: no column is text.
        """
        names = [name for name in row if name != REST and "/" not in name and name not in (*FILE_COLUMNS, *_CLASSES)]
        texts = [name for name in names if row[name] is None or isinstance(row[name], str | bytes | list)]
        if not texts:
            raise InvalidError(
                "no_text", f"no column of the task is text; name one in `columns` ({', '.join(names_in(row))})"
            )
        return texts

    def contents(self, row: Row) -> dict[str, Any]:
        """The values of the columns.

        Raises:
            InvalidError: a column is missing, or no column is text.
        """
        if self.columns is not None:
            return {name: named(row, name) for name in self.columns}
        return {name: value(row, name) for name in self.default_columns(row)}

    def texts(self, row: Row) -> Iterator[str]:
        """The text of each column, without missing ones. A chat is one text with blank lines between its messages.

        Raises:
            InvalidError: a named column is missing or is not text, or no column is text.
        """
        for name, content in self.contents(row).items():
            if content is not None:
                yield _read(name, content)

    def mapped(self, row: Row, change: Callable[[str], str], decode: Callable[[bytes], str] | None = None) -> Row:
        """The row with its texts changed; the same object if no text changes.

        Args:
            row: the row.
            change: gives the new text for a text.
            decode: decodes a whole file. None: it must be UTF-8.

        Raises:
            InvalidError: a named column is missing, or holds bytes that are not text.
        """
        for name, content in self.contents(row).items():
            new = _changed(content, change, decode or decoded)
            if new is not content:
                row = changed(row, name, new)
        return row


class TextFilter(TextStep):
    """A step that drops rows because of their texts."""

    def clean(self, row: Row, notes: Notes) -> Row:
        for text in self.texts(row):
            self.check(text)
        return row

    @abstractmethod
    def check(self, text: str) -> None:
        """Return if a text can stay.

        Raises:
            Dropped: it cannot.
        """


class TextMapper(TextStep):
    """A step that changes the texts of a row, including texts that the task does not use."""

    columns: tuple[str, ...] | None = Field(None, min_length=1)
    """Columns whose texts are changed. None: all texts of the row, chats included, except columns named `label`,
    `labels` or `tags`."""

    def default_columns(self, row: Row) -> list[str]:
        return [name for name in names_in(row) if name not in (*FILE_COLUMNS, *_CLASSES)]


def _changed(content: Any, change: Callable[[str], str], decode: Callable[[bytes], str]) -> Any:
    """A value with its texts changed; the same object if no text changes."""
    if isinstance(content, bytes):
        text = decode(content)
        new = change(text)
        return content if new == text and text.encode(errors="surrogatepass") == content else new
    if isinstance(content, str):
        new = change(content)
        return content if new == content else new
    if isinstance(content, dict):
        old = {key: content[key] for key in content if key not in _NO_TEXT}
        values = {key: _changed(inner, change, decode) for key, inner in old.items()}
        return content if all(values[key] is old[key] for key in old) else {**content, **values}
    if isinstance(content, list):
        items = [_changed(inner, change, decode) for inner in content]
        return content if all(new is inner for new, inner in zip(items, content, strict=True)) else items
    return content


def decoded(content: bytes) -> str:
    """A whole file as UTF-8, without a byte order mark.

    Raises:
        InvalidError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidError(
            "not_utf8",
            f"not UTF-8: byte {content[error.start]:#04x} at {error.start}; put the step `fix_text` before this one",
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
            return "\n\n".join(text for message in content for text in _texts_of(message))
    kind = type(content).__name__
    raise InvalidError("not_text", f"column {name!r} holds a {kind}, which is not text; name other `columns`")


def _texts_of(message: dict[str, Any]) -> Iterator[str]:
    content = message.get("content", message.get("value"))  # OpenAI's messages, ShareGPT's conversations
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):  # parts, in the format of OpenAI's API
        yield from (part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
