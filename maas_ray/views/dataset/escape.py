"""Untrusted text made safe for a terminal or a page: no character is invisible or has an effect.

A row of data can hold sequences that move a terminal's cursor or reverse the direction of writing. Such characters are
replaced by their escape sequences. Escaping HTML is up to the page.
"""

import codecs
import math

_ENDS_OF_LINES = {"\n": "↵", "\t": " ", "\r": ""}


def escaped(text: str, limit: int, *, lines: bool = False) -> str:
    """A text, cut to a number of characters, with control characters escaped.

    Args:
        text: any text.
        limit: the number of characters, before escaping.
        lines: keep ends of lines and tabs.
    """
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(map(_with_lines if lines else _visible, shown))


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return _ENDS_OF_LINES.get(character, _escape_sequence(character))


def _with_lines(character: str) -> str:
    return character if character.isprintable() or character in "\n\t" else _visible(character)


def _escape_sequence(character: str) -> str:
    return character.encode("unicode_escape").decode()


def escaped_bytes(excerpt: bytes) -> str:
    """The beginning of a row as text. For other content, its kind and its first bytes."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(excerpt)  # an excerpt can end within a character
    if b"\0" in excerpt or text.count("�") > len(excerpt) // 8:
        return f"{_kind_of(excerpt)}, begins {excerpt[:16].hex(' ')}"
    return text


_MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"fLaC": "a FLAC file",
    b"OggS": "an Ogg file",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a ZIP file",
}


def _kind_of(excerpt: bytes) -> str:
    if excerpt[:4] == b"RIFF":
        return {b"WAVE": "a WAV file", b"WEBP": "a WebP image"}.get(excerpt[8:12], "a RIFF file")
    return next((kind for magic, kind in _MAGIC.items() if excerpt.startswith(magic)), "binary data")


def number(value: float) -> str:
    """A number in a few characters."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def share(part: float, whole: float) -> str:
    """A percentage, as in `12.3 %`. Only 0 is shown as 0 %, and only everything as 100 %."""
    if not whole:
        return ""
    percent = 100 * part / whole
    if 0 < percent < 0.05:
        return "<0.1 %"
    if 99.95 <= percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %"


def size(count: float) -> str:
    """A number of bytes, as in `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
