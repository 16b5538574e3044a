"""The text of a row, as duplicates are found by it."""

import unicodedata
from typing import Any

from maas_ray.tasks import Row


def text_of(row: Row, names: tuple[str, ...]) -> str:
    """All text of a parsed row in these columns: of chats what is said in them, of lists their words."""
    return "\n".join(part for name in names for part in _texts(row.get(name)))


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key in ("content", "text") for text in _texts(value.get(key))]
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, str) for item in value):
            return [" ".join(value)]
        return [text for item in value for text in _texts(item)]
    return []


def normalised(text: str) -> str:
    """The form by which texts are the same: NFKC, case folded, white space as single spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())
