"""The user's DeepSpeed document: a JSON object, written inline or read from a file."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from maas_ray.errors import InvalidError

AUTO = "auto"
FieldPath = tuple[str, ...]
"""The path of a field in a document, such as `("optimizer", "params", "lr")`."""


def read_document(value: Any) -> Any:
    """A document as it is, or read from the path of a JSON file.

    Raises:
        InvalidError: the file cannot be read or does not hold a JSON object.
    """
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except InvalidError as error:
        raise InvalidError(error.code, f"{value!r}: {error}") from error
    except OSError as error:
        raise InvalidError(
            "file_unreadable", f"{value!r} cannot be read: {error.strerror}. Name a JSON file, or write it inline."
        ) from error
    except ValueError as error:
        raise InvalidError("json_invalid", f"{value!r} is not valid JSON: {error}.") from error
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise InvalidError("not_an_object", f"{value!r} holds a {kind}; a DeepSpeed configuration must be an object.")
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file. By default the last of two equal keys would win in silence."""
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InvalidError(
            "duplicate_key", f"the key {', '.join(map(repr, twice))} stands twice in an object; keep one"
        )
    return document


DeepSpeedDocument = Annotated[
    dict[str, Any], BeforeValidator(read_document, json_schema_input_type=str | dict[str, Any])
]
"""A DeepSpeed configuration, inline or the path of a JSON file: DeepSpeed's own document, passed through whole."""


def value_at(document: dict[str, Any], path: FieldPath) -> Any:
    """The value at a path of a document, or None."""
    value: Any = document
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def zero_stage(document: dict[str, Any]) -> int:
    """ZeRO's stage. It shards over the workers: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too."""
    return int(value_at(document, ("zero_optimization", "stage")) or 0)
