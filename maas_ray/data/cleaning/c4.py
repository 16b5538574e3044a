"""`c4_quality`: the filters of C4, the Colossal Clean Crawled Corpus, which keep the lines of prose in a document.

Raffel et al. (2020), "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 21(140),
section 2.2, and its code (`tensorflow_datasets/text/c4_utils.py`), which also removes lines about policies and citation
marks. The filters are meant for English web pages. Source code has curly brackets and is dropped.
"""

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from maas_ray.data.cleaning.base import Dropped, Notes
from maas_ray.data.cleaning.base.text import TextStep
from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import Row

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_TERMINAL = (".", "?", "!", '"', "'", "”", "’")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
# A sentence ends with a terminal mark and optional quotes or brackets, before white space or at the end.
_SENTENCE = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s|$)""")


class C4Quality(TextStep):
    """`{step: c4_quality}`: removes lines that are not sentences, and drops documents with too few sentences left."""

    step: Literal["c4_quality"] = "c4_quality"
    """Name of the step."""
    terminal_punctuation: bool = True
    """Remove lines that do not end with a full stop, a question mark, an exclamation mark or a quotation mark."""
    min_words_per_line: int = Field(5, ge=0)
    """Minimum number of words in a line."""
    max_word_length: int = Field(1000, ge=1)
    """Maximum number of characters of a word in a line."""
    min_sentences: int = Field(3, ge=0)
    """Minimum number of sentences in the remaining lines of a document."""
    lorem_ipsum: bool = True
    """Drop documents with `lorem ipsum` in a line of prose."""
    curly_brackets: bool = True
    """Drop documents with `{` in a line of prose."""
    javascript: bool = True
    """Remove lines with the word JavaScript."""
    policies: bool = True
    """Remove lines about cookies, privacy and terms of use."""
    citations: bool = True
    """Remove marks such as `[12]` and `[citation needed]`."""
    bad_words: str | None = None
    """Local file with a word or phrase on each line. Documents with one of them, in any case, are dropped. None: no
    document is."""

    _bad: re.Pattern[str] | None = PrivateAttr(None)
    _bad_digest: str = PrivateAttr("")

    def model_post_init(self, context: Any) -> None:
        """Read the bad words once; they travel with the step."""
        if self.bad_words is None:
            return
        try:
            content = Path(self.bad_words).expanduser().read_bytes()
            lines = content.decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidError("unreadable_file", f"bad_words: {self.bad_words} cannot be read: {error}") from error
        words = sorted({line.strip().lower() for line in lines} - {""})
        # A script without spaces has no word boundaries, so a word counts anywhere in the text (as in mC4).
        parts = [rf"(?<!\w){re.escape(word)}(?!\w)" if word.isascii() else re.escape(word) for word in words]
        self._bad = re.compile("|".join(parts)) if parts else None
        self._bad_digest = hashlib.sha256(content).hexdigest()

    def identity(self) -> dict[str, Any]:
        """The identity contains the bad words themselves instead of the path of their file."""
        identity = super().identity()
        return identity if self.bad_words is None else identity | {"bad_words": self._bad_digest}

    def clean(self, row: Row, notes: Notes) -> Row:
        for name, content in self.contents(row).items():
            if not isinstance(content, str | bytes | None):
                kind = type(content).__name__
                raise InvalidError("not_a_document", f"column {name!r} holds a {kind}; c4_quality needs documents")
        kept = self.mapped(row, self._kept)
        if kept is not row:
            notes["removed lines"] += 1
        return kept

    def _kept(self, text: str) -> str:
        """The remaining lines of a document."""
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
        """The line as it is kept; empty if it is removed. As in C4's code, only lines of prose can drop a document."""
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
