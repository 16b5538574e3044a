"""Passwords and signatures in URLs, hidden before a text is shown or a document is stored.

A reference to a variable, `${DB_PASSWORD}`, is not a secret and stays.
"""

import re
from typing import Any

_HIDDEN = "***"
# A password may contain `@`, and a carelessly written one `/`; `host:80/` is a port.
_PASSWORD = re.compile(r"(://[^/\s:@]*:)(?!\$\{\w+\}@)(?:[^/\s]*@|(?!\d+/)[^@\s]*@)")
_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:passw|pwd|secret|token|sig\b|signature|credential|api[_-]?key|access[_-]?key)[\w.-]*=)(?!\$\{\w+\}(?:[&;\s'\"]|$))[^&;\s'\"]+",
    re.IGNORECASE,
)


def hide_secrets(text: str) -> str:
    """The same text, in which `://user:password@` and parameters such as `?sig=` show no secret."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{_HIDDEN}", _PASSWORD.sub(rf"\1{_HIDDEN}@", text))


def without_secrets(value: Any) -> Any:
    """The same document, whose texts show no secrets."""
    if isinstance(value, dict):
        return {name: without_secrets(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return hide_secrets(value) if isinstance(value, str) else value
