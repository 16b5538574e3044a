"""Pieces of Markdown that all generated pages share."""

import json
import re
from collections.abc import Iterable
from typing import Any

FIELDS = ("field", "type", "default", "limits", "meaning")
"""The columns of a table of fields."""


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table, or nothing without rows."""
    body = ["| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body, ""] if body else []


def paragraphs(text: str) -> list[str]:
    """A docstring as Markdown, without its sections of arguments and errors."""
    return re.split(r"\n(?=(?:Args|Raises|Returns):\n)", text)[0].splitlines()


def yaml(value: Any) -> str:
    """A value on one line, as YAML and JSON both read it; plain words without quotes."""
    if isinstance(value, str) and re.fullmatch(r"[\w./@:-]+( [\w./@:-]+)*", value):
        return value
    return json.dumps(value, ensure_ascii=False, default=lambda other: other.model_dump(mode="json"))
