"""`fix_text`: repairs text with ftfy (Speer 2019, https://ftfy.readthedocs.io).

It decodes bytes in other encodings, undoes mojibake, and makes invisible differences uniform: Unicode's normal form,
line ends, control characters.
"""

import codecs
import re
from functools import cache
from typing import Any, Literal

from pydantic import Field, field_validator

from maas_ray.data.cleaning.base import Notes
from maas_ray.data.cleaning.base.text import TextMapper
from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import Row

# Longer marks come first: the mark of little-endian UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NAMES = {"sloppy-windows-1252": "windows-1252", "utf-8-variants": "CESU-8"}
_PLAIN = re.compile(r"[\t\n\x20-\x7e]*")
"""Text that no fix changes."""
_MAX_PASSES = 10


class FixText(TextMapper):
    """`{step: fix_text}`"""

    step: Literal["fix_text"] = "fix_text"
    """Name of the step."""
    encodings: tuple[str, ...] = Field(("utf-8",), min_length=1)
    """Encodings of whole files by Python's names, tried in this order if there is no byte order mark."""
    guess: bool = True
    """Decode bytes in none of `encodings` as ftfy guesses: Windows-1252, or Mac Roman. false: quarantine the row."""
    mojibake: bool = True
    """Repair text that was decoded with the wrong encoding (`sÃ¼ÃŸ`)."""
    unescape_html: bool = False
    """Replace HTML entities such as `&amp;` with characters."""
    normalization: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = "NFC"
    """Unicode's normal form (Unicode Standard Annex 15). null: unchanged."""

    @field_validator("encodings")
    @classmethod
    def _known(cls, encodings: tuple[str, ...]) -> tuple[str, ...]:
        for name in encodings:
            try:
                "a".encode(name)
            except LookupError:
                raise InvalidError(
                    "unknown_encoding", f"unknown encoding {name!r}; use a Python codec such as 'latin-1'."
                ) from None
        return encodings

    def clean(self, row: Row, notes: Notes) -> Row:
        def decode(content: bytes) -> str:
            text, encoding = self._decoded(content)
            if encoding not in ("utf-8", "utf-8-sig"):
                notes[f"decoded from {encoding}"] += 1
            return text

        fixed = self.mapped(row, self._fixed, decode)
        if fixed is not row:
            notes["changed"] += 1
        return fixed

    def _fixed(self, text: str) -> str:
        """The text after passes of ftfy until nothing changes, because one pass may uncover work for the next."""
        if _PLAIN.fullmatch(text) and not (self.unescape_html and "&" in text):
            return text
        import ftfy

        config = _config(self.mojibake, self.unescape_html, self.normalization)
        for _ in range(_MAX_PASSES):
            fixed = ftfy.fix_text(text, config)
            if self.normalization is not None:  # also across the lines and segments that ftfy processes one by one
                import unicodedata

                fixed = unicodedata.normalize(self.normalization, fixed)
            if fixed == text:
                return text
            text = fixed
        return text

    def _decoded(self, content: bytes) -> tuple[str, str]:
        """The text of a file, and its encoding."""
        for mark, encoding in _MARKS:
            if content.startswith(mark):
                try:
                    return content.decode(encoding), encoding
                except UnicodeDecodeError as error:
                    text = f"begins with the mark of {encoding}, but cannot be decoded: byte {error.start}"
                    raise InvalidError("not_text", text) from error
        if wide := _wide(content):
            return content.decode(wide), wide
        if b"\0" in content:
            raise InvalidError(
                "not_text", f"holds NUL bytes (the first at {content.index(0)}): it is not text, or is cut off"
            )
        for encoding in self.encodings:
            try:
                return content.decode(encoding), encoding
            except UnicodeDecodeError:
                continue
        if not self.guess:
            raise InvalidError(
                "unknown_encoding",
                f"is in none of {', '.join(self.encodings)}; name its encoding, or set `guess: true`",
            )
        import ftfy

        text, encoding = ftfy.guess_bytes(content)
        return text, _NAMES.get(encoding, encoding)


def _wide(content: bytes) -> str | None:
    """The encoding of UTF-16 without a mark: every other byte is NUL in Latin script (as in RFC 4627, section 3)."""
    if len(content) % 2 or b"\0" not in content:
        return None
    half = len(content) // 2
    high, low = content[0::2].count(0) / half, content[1::2].count(0) / half
    encoding = "utf-16-le" if low > 0.7 and high < 0.05 else "utf-16-be" if high > 0.7 and low < 0.05 else None
    try:
        return encoding if encoding and content.decode(encoding) else None
    except UnicodeDecodeError:
        return None


@cache
def _config(mojibake: bool, unescape_html: bool, normalization: Any) -> Any:
    """The configuration of ftfy. Quotes, ligatures and wide letters, which a reader sees, are not changed."""
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=unescape_html,
        fix_encoding=mojibake,
        fix_c1_controls=mojibake,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        normalization=normalization,
        explain=False,
    )
