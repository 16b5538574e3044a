"""Text of anybody's data, as it may stand in a terminal or a page: nothing in it acts, all of it is seen.

A row of data may hold sequences that move a terminal's cursor or that turn the direction of writing around; such
characters are written as their escapes. What HTML would read as markup is the page's own business.
"""

import codecs
import math

_ENDS_OF_LINES = {"\n": "↵", "\t": " ", "\r": ""}


def legible(text: str, limit: int, *, lines: bool = False) -> str:
    """At most so many characters of a text, none of which is invisible or has an effect.

    Args:
        text: anything.
        limit: of characters, before they are escaped.
        lines: whether ends of lines and tabs stay.
    """
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(map(_with_lines if lines else _seen, shown))


def _seen(character: str) -> str:
    if character.isprintable():
        return character
    return _ENDS_OF_LINES.get(character, _escaped(character))


def _with_lines(character: str) -> str:
    return character if character.isprintable() or character in "\n\t" else _seen(character)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def legible_bytes(excerpt: bytes) -> str:
    """The beginning of a row as text; of what is no text, what it is and its first bytes."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(excerpt)  # which may end within a character
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
    return next((kind for magic, kind in _MAGIC.items() if excerpt.startswith(magic)), "no text")


def number(value: float) -> str:
    """A number in few characters."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def share(part: float, whole: float) -> str:
    """Such as `12.3 %`; what is not nought is never shown as nought, nor what is not all as all."""
    if not whole:
        return ""
    percent = 100 * part / whole
    if 0 < percent < 0.05:
        return "<0.1 %"
    if 99.95 <= percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %"


def size(count: float) -> str:
    """Bytes, such as `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
