"""Passwords and signatures in URLs, hidden before a text is shown."""

import re

_HIDDEN = "***"
# A password may contain `@`, and a carelessly written one `/`; `host:80/` is a port.
_PASSWORD = re.compile(r"(://[^/\s:@]*:)(?:[^/\s]*@|(?!\d+/)[^@\s]*@)")
_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:passw|pwd|secret|token|sig\b|signature|credential|api[_-]?key|access[_-]?key)[\w.-]*=)[^&;\s'\"]+",
    re.IGNORECASE,
)


def hide_secrets(text: str) -> str:
    """The same text, in which `://user:password@` and parameters such as `?sig=` show no secret."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{_HIDDEN}", _PASSWORD.sub(rf"\1{_HIDDEN}@", text))
