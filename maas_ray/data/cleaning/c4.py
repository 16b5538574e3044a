"""`c4_quality`: the filters of C4, the Colossal Clean Crawled Corpus, which keep a document's lines of prose.

Raffel et al. (2020), "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 21(140),
section 2.2, and its code (`tensorflow_datasets/text/c4_utils.py`), which also removes lines of policies and marks of
citations. Made for English web pages; code has curly brackets, and is dropped.
"""

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from maas_ray.data.cleaning.base import Dropped, Notes
from maas_ray.data.cleaning.texts import TextStep
from maas_ray.tasks.rows import Row

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_TERMINAL = (".", "?", "!", '"', "'", "”", "’")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
# A sentence ends with a terminal mark, and quotes or brackets after it, before white space or at the end.
_SENTENCE = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s|$)""")


class C4Quality(TextStep):
    """`{step: c4_quality}`: lines that are no sentences are removed; what is then too little is dropped."""

    step: Literal["c4_quality"] = "c4_quality"
    """Which step."""
    terminal_punctuation: bool = True
    """Whether lines must end with a full stop, a question mark, an exclamation mark or a quotation mark."""
    min_words_per_line: int = Field(5, ge=0)
    """Least words of a line that stays."""
    max_word_length: int = Field(1000, ge=1)
    """Most characters of a word in a line that stays."""
    min_sentences: int = Field(3, ge=0)
    """Least sentences of a document, in the lines that stay."""
    lorem_ipsum: bool = True
    """Whether documents with `lorem ipsum` in a line of so many words are dropped."""
    curly_brackets: bool = True
    """Whether documents with `{` in such a line are dropped."""
    javascript: bool = True
    """Whether lines with the word JavaScript are removed."""
    policies: bool = True
    """Whether lines about cookies, privacy and terms of use are removed."""
    citations: bool = True
    """Whether marks such as `[12]` and `[citation needed]` are removed."""
    bad_words: str | None = None
    """Local file with a word or phrase a line; documents that have one, in any case, are dropped. None: none is."""

    _bad: re.Pattern[str] | None = PrivateAttr(None)
    _bad_digest: str = PrivateAttr("")

    def model_post_init(self, context: Any) -> None:
        """The bad words are read once, and travel with the step."""
        if self.bad_words is None:
            return
        try:
            content = Path(self.bad_words).expanduser().read_bytes()
            lines = content.decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"bad_words: {self.bad_words} cannot be read: {error}") from error
        words = sorted({line.strip().lower() for line in lines} - {""})
        # Scripts without spaces have no word boundaries: there a word counts wherever it stands (as in mC4).
        parts = [rf"(?<!\w){re.escape(word)}(?!\w)" if word.isascii() else re.escape(word) for word in words]
        self._bad = re.compile("|".join(parts)) if parts else None
        self._bad_digest = hashlib.sha256(content).hexdigest()

    def identity(self) -> dict[str, Any]:
        """The bad words count by what they are, wherever they lie."""
        found = super().identity()
        return found if self.bad_words is None else found | {"bad_words": self._bad_digest}

    def clean(self, row: Row, notes: Notes) -> Row:
        for name, content in self.contents(row).items():
            if not isinstance(content, str | bytes | None):
                raise ValueError(f"column {name!r} holds a {type(content).__name__}; these rules are for documents")
        kept = self.mapped(row, self._kept)
        if kept is not row:
            notes["removed lines"] += 1
        return kept

    def _kept(self, text: str) -> str:
        """The lines of a document that stay."""
        if not text.strip():
            return text
        lines = [line for line in map(self._prose, text.splitlines()) if line]
        if sum(max(1, len(_SENTENCE.findall(line))) for line in lines) < self.min_sentences:
            raise Dropped("too few sentences")
        kept = "\n".join(lines)
        if self._bad is not None and self._bad.search(kept.lower()):
            raise Dropped("bad word")
        return kept

    def _prose(self, line: str) -> str:
        """A line as it stays; empty where it does not. Only lines of prose speak for a page, as in C4's code."""
        line = line.strip()
        if self.citations:
            line = _CITATION.sub("", line).rstrip()
        words = line.split()
        if (
            len(words) < self.min_words_per_line
            or max(map(len, words), default=0) > self.max_word_length
            or (self.terminal_punctuation and (not line.endswith(_TERMINAL) or line.endswith("...")))
        ):
            return ""
        lowered = line.lower()
        if self.lorem_ipsum and "lorem ipsum" in lowered:
            raise Dropped("lorem ipsum")
        if self.javascript and "javascript" in lowered:
            return ""
        if self.curly_brackets and "{" in line:
            raise Dropped("curly bracket")
        return "" if self.policies and any(phrase in lowered for phrase in _POLICIES) else line
