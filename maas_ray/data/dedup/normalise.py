"""The text of a row, and the forms in which texts are compared.

    normalised    Unicode NFKC, case folded, without invisible characters, white space collapsed
    words         letters, marks and digits of that form; everything between them separates words
    gram_hashes   n-grams of words, each as a number

In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character is a word, as in BERT's
tokenizer for Chinese (Devlin et al. 2019).
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from maas_ray.data.splits.hashing import mixed
from maas_ray.tasks import Row

# Han with its extensions and compatibility forms, kana, Thai and Lao, Burmese, Khmer. Hangul has spaces.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
"""Unicode's Default_Ignorable_Code_Point, such as soft hyphens and zero-width spaces, which a page shows as nothing."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio (Knuth, TAOCP 3, 6.4). It is odd, so that multiplication is reversible."""
_CACHED_WORDS = 1 << 16


def text_of(row: Row, names: Iterable[str]) -> str:
    """The text in these columns of a parsed row, a line for each value. Numbers and files have no text."""
    return "\n".join(
        chain.from_iterable(_strings(_chat(row.get(name)) if name == "messages" else row.get(name)) for name in names)
    )


def _chat(value: Any) -> Any:
    """The messages of a chat, which the task of text generation stores as JSON."""
    return json.loads(value) if isinstance(value, str) else value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        words = [*chain.from_iterable(map(_strings, value))]
        yield ("\n" if any(isinstance(part, dict) for part in value) else " ").join(words)
    elif isinstance(value, dict):
        for name, part in value.items():
            # The role of a message and the type of a part are not text.
            if name not in ("role", "type"):
                yield from _strings(part)


def normalised(text: str) -> str:
    """Unicode's NFKC_Casefold, white space collapsed. Rows with the same normalised text are exact duplicates."""
    return " ".join(_folded(text).split())


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Case folding may undo NFKC, so it is applied again (Unicode 3.13, toNFKC_Casefold).
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _IGNORABLE.sub("", text)).casefold())


class _Separated(dict[int, str | int]):
    """A table for `str.translate`: a character that is not a letter, mark or digit becomes a space, and a character of
    a script without spaces becomes a word.
    """

    def __missing__(self, point: int) -> str | int:
        character = chr(point)
        if unicodedata.category(character)[0] not in "LMN":
            replacement: str | int = " "
        elif any(low <= point <= high for low, high in _UNSPACED):
            replacement = f" {character} "
        else:
            replacement = point
        self[point] = replacement
        return replacement


_SEPARATED = _Separated()
_SEPARATED_ASCII = "".join(map(chr, range(128))).lower().translate(_SEPARATED).encode().ljust(256)
"""The same for bytes of ASCII, with upper case as lower case."""
_SPACE = 0x20


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return _folded(text).translate(_SEPARATED).split()


class _Hashes(dict[str, int]):
    """XXH3 of each word, cached, because a few words are most of every text (Zipf)."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        hashed = self[word] = xxhash.xxh3_64_intdigest(word.encode())
        return hashed


_HASHES = _Hashes()


def word_hashes(text: str) -> np.ndarray:
    """The words of a text as numbers, uint64, in order."""
    found = words(text)
    return np.fromiter(map(_HASHES.__getitem__, found), np.uint64, len(found))


def run_hashes(hashes: np.ndarray, lengths: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Every run of words of each length as a number, uint64, in order.

    Args:
        hashes: the words, see `word_hashes`.
        lengths: numbers of words, ascending. Longer runs than the text has are left out.
    """
    runs, length = hashes.copy(), 1
    for wanted in lengths:
        if wanted > len(hashes):
            return
        while length < wanted:
            runs = runs[:-1] * _MULTIPLIER + hashes[length:]
            length += 1
        yield length, mixed(runs)


def words_of(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """The words of many texts as numbers, see `word_hashes`, without a Python object for each word.

    Returns:
        The words of all texts, uint64, text by text in order; and the number of words of each text, int64 [texts].
    """
    parts = [
        text.encode().translate(_SEPARATED_ASCII) if text.isascii() else _folded(text).translate(_SEPARATED).encode()
        for text in texts
    ]
    characters = np.frombuffer(b" ".join([*parts, b""]), np.uint8)
    inside = characters != _SPACE
    first_space = ~inside  # the first space after each word
    first_space[:1] = False
    first_space[1:] &= inside[:-1]
    ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)) + 1)
    counts = np.diff(np.searchsorted(np.flatnonzero(first_space), ends), prepend=0)
    # All words in one buffer, each with a space at its end.
    packed = characters[inside | first_space]
    offsets = np.append(0, np.flatnonzero(packed == _SPACE) + 1)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(packed)]
    encoded = pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers).dictionary_encode()
    distinct = b"".join(encoded.dictionary.to_pylist()).split(b" ")[:-1]
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, distinct), np.uint64, len(distinct))
    return hashes[encoded.indices.to_numpy()], counts


def gram_hashes(texts: Iterable[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every n-gram of `size` words of each text as a number. A text of fewer words is one n-gram, an empty text none.

    The hash of each word is computed once, and hashes are combined like the digits of a number (Karp and Rabin 1987),
    for all texts together.

    Returns:
        The n-grams of all texts, uint64, text by text in order; and the number of n-grams of each text, int64 [texts].
    """
    hashes, lengths = _filled(*words_of(texts), size)
    total = len(hashes)
    counts = np.maximum(lengths - (size - 1), 0)
    if not total:
        return hashes, counts
    runs = hashes[: total - size + 1].copy()
    for word in range(1, size):
        runs *= _MULTIPLIER
        runs += hashes[word : total - size + 1 + word]
    starts = np.cumsum(lengths) - lengths
    within = np.ones(total, bool)  # true if the n-gram that starts here ends in the same text
    for back in range(1, size):
        ends = (starts + lengths - back)[lengths > 0]
        within[ends] = False
    return mixed(runs[within[: len(runs)]]), counts


def _filled(hashes: np.ndarray, lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Words and their numbers with each text of fewer words filled up to `size` by empty words, which no text has."""
    filled = np.where(lengths > 0, np.maximum(lengths, size), 0)
    if np.array_equal(filled, lengths):
        return hashes, lengths
    result = np.full(int(filled.sum()), xxhash.xxh3_64_intdigest(b""), np.uint64)
    moved = np.cumsum(filled) - filled - (np.cumsum(lengths) - lengths)
    result[np.arange(len(hashes)) + np.repeat(moved, lengths)] = hashes
    return result, filled
