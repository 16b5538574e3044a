"""What a dataset was prepared from, as it may be shown: what the spec says of a source beyond its defaults, no secret.

A spec's own checks refuse a password that is written out; but a URL may carry one for a while, as a presigned one does,
and a spec may be from elsewhere.
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
    """A text in whose URLs passwords, signatures and the like are hidden; names of variables stay."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USERINFO.sub(rf"\1{HIDDEN}@", text))


def shown(source: dict[str, Any]) -> dict[str, Any]:
    """A source of a spec: its format, and those of its fields that are not as they are by default."""
    kind = _KINDS.get(str(source.get("format", "")))
    if kind is None:  # of another version, or made by somebody else
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
        # `partition_column: key` names a column: only what is called a secret on the whole is one.
        return HIDDEN if value and _is_secret(name) else without_secrets(value)
    return value


def _is_secret(name: str) -> bool:
    return name.lower() in ("password", "passwd", "pwd", "token", "secret", "api_key", "access_key", "secret_key")
