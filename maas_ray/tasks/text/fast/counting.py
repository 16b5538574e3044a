"""Token ids, and the bytes of text that each token stands for.

Byte-level BPE of text that its normaliser leaves alone (Qwen's NFC leaves most) spells each byte once, so the bytes
follow from the ids. Otherwise the offsets of `tokenizers` tell them.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maas_ray.tasks.text.fast.encoder import FastTokenizer
from maas_ray.tasks.text.spelling import Spelling, counted_bytes

if TYPE_CHECKING:
    import tokenizers


class Encoded(NamedTuple):
    """The tokens of a text, and the bytes of it that each token stands for, int64 [tokens], if they are counted."""

    ids: Sequence[int] | np.ndarray
    counts: np.ndarray | None

    def equals(self, other: "Encoded") -> bool:
        """True if tokens and bytes are the same."""
        pairs = ((self.ids, other.ids), (self.counts, other.counts))
        return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)


class CountingEncoder:
    """Encodes texts and counts bytes.

    Args:
        tokenizer: its `encode_special_tokens` says whether special tokens that a text spells stay text.
        fast: the same tokenizer in `fastokens`. None: the bytes that follow from its ids were not proved to be right.
        written: special tokens that a template writes, by id; they stand for no text.
    """

    def __init__(
        self, tokenizer: "tokenizers.Tokenizer", fast: FastTokenizer | None, written: Mapping[int, str] | None = None
    ) -> None:
        self._tokenizer, self._fast, self._written = tokenizer, fast, written or {}

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of texts, without special tokens around them, and their bytes."""
        known = self.by_ids(texts)
        others = iter(self.by_offsets([text for text, one in zip(texts, known, strict=True) if one is None]))
        return [next(others) if one is None else one for one in known]

    def by_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        """As `encode`, by `tokenizers`."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            Encoded(one.ids, counted_bytes(text, one.ids, one.offsets, self._written))
            for text, one in zip(texts, encodings, strict=True)
        ]

    def by_ids(self, texts: Sequence[str]) -> list[Encoded | None]:
        """As `encode`, by `fastokens`; None for a text whose tokens do not spell exactly its bytes."""
        if self._fast is None:
            return [None] * len(texts)
        left = [self._leaves(text) for text in texts]
        unchanged = [text for text, is_left in zip(texts, left, strict=True) if is_left]
        encoded = self._fast.encode(unchanged, literal=self._tokenizer.encode_special_tokens)
        if encoded is None:
            return [None] * len(texts)
        ids = iter(encoded)
        return [self._counted(text, next(ids)) if is_left else None for text, is_left in zip(texts, left, strict=True)]

    def _leaves(self, text: str) -> bool:
        """True if the normaliser does not change a text."""
        normalizer = self._tokenizer.normalizer
        return text.isascii() or normalizer is None or bool(normalizer.normalize_str(text) == text)

    def _counted(self, text: str, ids: np.ndarray) -> Encoded | None:
        counts = self._widths[ids]
        ends = np.cumsum(counts)
        if (ends[-1] if len(ends) else 0) != (len(text) if text.isascii() else len(text.encode())):
            return None
        if not text.isascii():
            # A character counts with the first of its tokens, as by offsets.
            spelled = np.frombuffer(text.encode(), np.uint8)
            begins = np.append(np.flatnonzero((spelled & 0xC0) != 0x80), len(spelled))
            counts = np.diff(begins[np.searchsorted(begins, ends)], prepend=0)
        if self._written:
            counts[np.isin(ids, list(self._written))] = 0
        return Encoded(ids, counts)

    @cached_property
    def _widths(self) -> np.ndarray:
        """Number of bytes that each token spells, special ones too, int64 [vocabulary]."""
        spelling = Spelling(self._tokenizer)
        tokens = range(self._tokenizer.get_vocab_size(with_added_tokens=True))
        return np.array([len(spelling.bytes_of(token)) for token in tokens], np.int64)


def spells_most_texts(document: dict[str, Any]) -> bool:
    """True if the tokens of a text in NFC may spell exactly its bytes. The proof finds out whether they do."""
    normalizer = document.get("normalizer") or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    spaced = '"add_prefix_space": true' in json.dumps(document.get("pre_tokenizer"))
    byte_level = '"ByteLevel"' in json.dumps(document.get("decoder"))
    return byte_level and not spaced and all(step["type"] == "NFC" for step in steps)
