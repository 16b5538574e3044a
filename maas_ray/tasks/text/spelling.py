"""The bytes of text that tokens stand for.

A token of byte-level BPE spells its own bytes. With other tokenizers the same token may stand for other bytes in other
texts: SentencePiece adds a space before the first word, normalisation changes characters, and an unknown token stands
for anything. Their bytes are therefore counted in the text, by the tokens' offsets.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers

_UNKNOWN = "\U0010fffd"
"""A character of private use, which no vocabulary holds."""


class Spelling:
    """The bytes of single tokens; a character may span several tokens.

    Attributes:
        by_token: a token's bytes depend on the token alone. WordPiece, and BPE with a suffix for the ends of words,
            never split a character, but write spaces that depend on the neighbours.
        joins: the decoder writes the bytes of tokens one after another, see `joined`.
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        self._tokenizer = tokenizer
        decoder = repr(tokenizer.decoder)
        self._byte_level = "ByteLevel" in decoder
        self.joins = decoder.startswith("ByteLevel(")
        self.by_token = "WordPiece" not in decoder and "BPEDecoder" not in decoder
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token: one.content for token, one in added.items()}
        self._written = {token: b"" for token, one in added.items() if one.special}

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token) or ""
        if self._byte_level:
            return bytes(_BYTES[character] for character in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    def joined(self, tokens: Sequence[int]) -> bytes:
        """The bytes that the decoder makes of tokens, if it `joins`; of special tokens, none."""
        try:
            return b"".join([self._written[token] for token in tokens])
        except KeyError:
            for token in tokens:
                self._written.setdefault(token, self._write(token))
            return self.joined(tokens)

    def _write(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token) or ""  # the decoder leaves out ids that it does not know
        try:  # added tokens too, which `bytes_of` takes by their text
            return bytes([_BYTES[character] for character in piece])
        except KeyError:
            return piece.encode()

    def continues(self, token: int) -> bool:
        """True if a token is a single byte that continues a character of UTF-8."""
        spelled = self.bytes_of(token)
        return len(spelled) == 1 and spelled[0] & 0xC0 == 0x80


def special_contents(tokenizer: "tokenizers.Tokenizer") -> dict[int, str]:
    """The special tokens that stand for no text, by id: all except the one for unknown text."""
    named = getattr(tokenizer.model, "unk_token", None)  # BERT removes characters of private use
    unknown = [*tokenizer.encode(_UNKNOWN, add_special_tokens=False).ids, tokenizer.token_to_id(named or "")]
    added = tokenizer.get_added_tokens_decoder()
    return {index: token.content for index, token in added.items() if token.special and index not in unknown}


def spells_every_text(tokenizer_json: bytes) -> bool:
    """True if the tokens of each text spell exactly its bytes: byte-level BPE without any normalisation."""
    document = json.loads(tokenizer_json)
    adds_a_space = '"add_prefix_space": true' in json.dumps(document.get("pre_tokenizer"))
    return '"ByteLevel"' in json.dumps(document.get("decoder")) and not document.get("normalizer") and not adds_a_space


def byte_lengths(tokenizer: "tokenizers.Tokenizer") -> np.ndarray:
    """Number of bytes that each token spells, int64 [vocabulary]; 0 for special tokens."""
    spelling = Spelling(tokenizer)
    lengths = [len(spelling.bytes_of(token)) for token in range(tokenizer.get_vocab_size(with_added_tokens=True))]
    counts = np.array(lengths, np.int64)
    counts[list(special_contents(tokenizer))] = 0
    return counts


def counted_bytes(
    text: str, ids: Sequence[int] | np.ndarray, offsets: Sequence[tuple[int, int]], special: Mapping[int, str]
) -> np.ndarray:
    """Number of bytes of a text that each of its tokens stands for, int64 [tokens]. They sum to the text's bytes.

    Bytes without a token of their own, such as collapsed spaces, count with the next token, or else with the last one.

    Args:
        text: the text.
        ids: its tokens.
        offsets: where each of them begins and ends, in characters.
        special: special tokens by id. One that the text spells out does not count: a chat template wrote it.
    """
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    until = np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])
    ends = np.array([end for _, end in offsets], np.int64)
    if not len(ends):
        return ends
    ends[-1] = len(points)
    counts = np.diff(until[np.maximum.accumulate(ends)], prepend=0)
    if special:
        for index in np.flatnonzero(np.isin(ids, list(special))).tolist():
            start, end = offsets[index]
            if special[int(ids[index])] in text[start:end]:
                counts[index] = 0
    return counts


def _byte_characters() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes (GPT-2): a visible character stands for itself."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTES = _byte_characters()
