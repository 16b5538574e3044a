"""The origin of a dataset as it can be shown: the fields of a source that differ from their defaults, without secrets.

Specs reject passwords in plain text. But a presigned URL carries one for a while, and a spec can come from elsewhere.
"""

import re
from typing import Any

from pydantic_core import to_jsonable_python

from maas_ray.data.sources import FORMATS

_KINDS = {kind.name_of(): kind for kind in FORMATS}
_CALLED = r"[\w.-]*(?:pass|pwd|token|secret|key|signature|credential)[\w.-]*|sig"
_USERINFO = re.compile(r"(\b[a-z][\w+.-]*://[^\s/?#@:]*:)(?!\$\{\w+\}@)[^\s/?#]*@", re.IGNORECASE)
_PARAMETER = re.compile(rf"([?&;](?:{_CALLED})=)(?!\$\{{\w+\}}(?:[&#\s]|$))[^&#\s]+", re.IGNORECASE)
HIDDEN = "***"


def without_secrets(text: str) -> str:
    """A text with passwords, signatures and similar secrets in its URLs replaced. Names of variables stay."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USERINFO.sub(rf"\1{HIDDEN}@", text))


def shown(source: dict[str, Any]) -> dict[str, Any]:
    """A source of a spec: its format and the fields that differ from their defaults."""
    kind = _KINDS.get(str(source.get("format", "")))
    if kind is None:  # a format of another version of maas_ray
        return {name: _public(name, value) for name, value in source.items()}
    usual = {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in kind.model_fields.items()
        if not field.is_required() and name != "format"
    }
    return {name: _public(name, value) for name, value in source.items() if name not in usual or value != usual[name]}


def _public(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {inner: _public(inner, some) for inner, some in value.items()}
    if isinstance(value, list | tuple):
        return [_public(name, some) for some in value]
    if isinstance(value, str):
        # Only a full match is a secret: `partition_column: key` names a column.
        return HIDDEN if value and _is_secret(name) else without_secrets(value)
    return value


def _is_secret(name: str) -> bool:
    return name.lower() in ("password", "passwd", "pwd", "token", "secret", "api_key", "access_key", "secret_key")
