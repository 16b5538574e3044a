"""The proof that `fastokens` gives the ids of `tokenizers`, found when a task is fitted.

Both encode a sample of the documents, each token of the vocabulary, all added tokens in several surroundings, and the
texts of `cases`. A single difference refuses `fastokens` for this tokenizer. The unit tests compare both on all
characters of Unicode, and on random texts, for the patterns that models use.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maas_ray.tasks.text.fast.cases import CASES, around
from maas_ray.tasks.text.fast.counting import CountingEncoder, spells_most_texts
from maas_ray.tasks.text.fast.encoder import FastTokenizer, Proof, encode_ids, installed
from maas_ray.tasks.text.spelling import special_contents

if TYPE_CHECKING:
    import tokenizers

_DOCUMENTS = 1000
_CHARACTERS, _WHOLE_CHARACTERS = 2000, 1_000_000
_COUNTED = 200  # documents whose bytes are compared too
_SHOWN = 40


class Sample:
    """Documents to compare on: the first ones, most of them cut, since `tokenizers` has to encode them too."""

    def __init__(self) -> None:
        self.documents: list[str] = []
        self._whole = _WHOLE_CHARACTERS

    @property
    def full(self) -> bool:
        """True if there are enough documents."""
        return len(self.documents) >= _DOCUMENTS

    def passing(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts; the sample is taken on their way."""
        for text in texts:
            if not self.full:
                document = text[: max(self._whole, _CHARACTERS)]
                self._whole -= len(document)
                self.documents.append(document)
            yield text

    def fill(self, texts: Iterator[str]) -> None:
        """Take as many texts as are missing."""
        while not self.full and next(texts, None) is not None:
            pass


def prove(tokenizer_json: bytes, documents: Sequence[str]) -> Proof:
    """Compare both on documents, and on all that could make them differ.

    Args:
        tokenizer_json: the tokenizer, as Hugging Face's `tokenizer.json`.
        documents: texts of the data.
    """
    version, machine = installed()
    if not version:
        return Proof(refused="the package fastokens is not installed")
    if (reason := _unsupported(json.loads(tokenizer_json))) is not None:
        return Proof(refused=reason)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        fast = FastTokenizer(tokenizer_json)
    except ValueError as error:
        return Proof(refused=f"fastokens does not support this tokenizer ({error})")
    added = [text for one in tokenizer.get_added_tokens_decoder().values() for text in around(one.content)]
    for literal, texts in (
        (False, added),
        (True, added),
        (True, CASES),
        (True, _spelled(tokenizer)),
        (True, documents),
    ):
        if (text := difference(tokenizer, fast, texts, literal=literal)) is not None:
            # The reason is stored with the dataset and its models, which the text of a document is not.
            shown = "a document of the data" if texts is documents else repr(text[:_SHOWN])
            return Proof(refused=f"fastokens {version} does not encode {shown} as tokenizers does")
    counts = spells_most_texts(json.loads(tokenizer_json)) and all(
        counts_agree(tokenizer, fast, texts, literal=literal)
        for literal, texts in ((False, added), (True, added), (True, CASES), (True, documents[-_COUNTED:]))
    )
    return Proof(version, machine, counts=counts)


def counts_agree(
    tokenizer: "tokenizers.Tokenizer", fast: FastTokenizer, texts: Sequence[str], *, literal: bool
) -> bool:
    """True if the bytes that follow from the ids of texts are those by offsets."""
    tokenizer.encode_special_tokens = literal
    encoder = CountingEncoder(tokenizer, fast, {} if literal else special_contents(tokenizer))
    return all(
        ours is None or ours.equals(theirs)
        for ours, theirs in zip(encoder.by_ids(texts), encoder.by_offsets(texts), strict=True)
    )


def difference(
    tokenizer: "tokenizers.Tokenizer", fast: FastTokenizer, texts: Sequence[str], *, literal: bool
) -> str | None:
    """The first text that both encode differently. None: there is none."""
    tokenizer.encode_special_tokens = literal
    ours, theirs = fast.encode(texts, literal=literal), encode_ids(tokenizer, texts)
    if ours is not None and np.array_equal(ours.lengths, theirs.lengths) and np.array_equal(ours.values, theirs.values):
        return None
    for text, expected in zip(texts, theirs, strict=True):
        ours = fast.encode([text], literal=literal)
        if ours is None or not np.array_equal(ours.values, expected):
            return text
    return "\n".join(texts)  # they differ together only


def _unsupported(document: dict[str, Any]) -> str | None:
    """The reason why a tokenizer is not compared at all: only byte-level BPE is."""
    model = document.get("model") or {}
    if model.get("type", "BPE") != "BPE":
        return f"it is {model['type']}, and only byte-level BPE is encoded by fastokens"
    if '"ByteLevel"' not in json.dumps([document.get("pre_tokenizer"), document.get("normalizer")]):
        return "it is BPE, but not of bytes, and only byte-level BPE is encoded by fastokens"
    if model.get("dropout"):
        return "it drops merges at random"
    return None


def _spelled(tokenizer: "tokenizers.Tokenizer") -> list[str]:
    """The text of each token."""
    count = tokenizer.get_vocab_size(with_added_tokens=True)
    texts: list[str] = tokenizer.decode_batch([[token] for token in range(count)], skip_special_tokens=False)
    return texts
