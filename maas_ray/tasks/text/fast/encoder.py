"""Token ids from `fastokens`: those of `tokenizers`, some twenty times as fast, without a Python object for each token.

Its caches belong to threads: up to 100 MB each, after much text. So requests, which come in many threads, are encoded
in one thread for all of them, and its own pool of threads is not used. The tasks of `prepare` encode in the thread
they run in.
"""

import json
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maas_ray.tasks.rows import Ragged
from maas_ray.tasks.task import ACCELERATION_FILE

if TYPE_CHECKING:
    import tokenizers

PACKAGE = "fastokens"
_THREADS = "FASTOKENS_BPE_THREADS"
_SHORT = 4096
"""Characters of a text that `tokenizers` encodes in less time than a change of threads is worth."""


@cache
def installed() -> tuple[str, str]:
    """The installed version, empty if there is none, and the kind of processor, which decides about its code."""
    try:
        return metadata.version(PACKAGE), platform.machine()
    except metadata.PackageNotFoundError:
        return "", platform.machine()


@dataclass(frozen=True)
class Proof:
    """The result of comparing `fastokens` with `tokenizers` for one tokenizer. It is saved with a task.

    Args:
        version: the version that gave equal ids. Empty: it is not used.
        machine: the kind of processor that they were compared on.
        refused: the reason why it is not used.
        counts: the bytes of text that tokens stand for follow from its ids, see `CountingEncoder`.
    """

    version: str = ""
    machine: str = ""
    refused: str = ""
    counts: bool = False

    @classmethod
    def read(cls, directory: Path) -> "Proof":
        """The proof in a task's directory."""
        path = directory / ACCELERATION_FILE
        return cls(**json.loads(path.read_bytes())) if path.exists() else cls()

    def write(self, directory: Path) -> None:
        """Write the proof for `read`, if there is one."""
        if self != Proof():
            text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
            (directory / ACCELERATION_FILE).write_text(text, encoding="utf-8")

    @property
    def remarks(self) -> list[str]:
        """A line for a person if it was refused."""
        line = f"text is encoded by tokenizers, not by fastokens, which is faster: {self.refused}"
        return [line] if self.refused else []

    @property
    def holds(self) -> bool:
        """True if it was found on this version and kind of processor. Otherwise `tokenizers` gives the same ids."""
        return bool(self.version) and (self.version, self.machine) == installed()


class FastTokenizer:
    """A tokenizer in `fastokens`.

    Args:
        tokenizer_json: the tokenizer, as Hugging Face's `tokenizer.json`.

    Raises:
        ValueError: `fastokens` does not support it.
    """

    def __init__(self, tokenizer_json: bytes) -> None:
        os.environ.setdefault(_THREADS, "1")  # read once, when it first encodes
        from fastokens import Tokenizer

        document = json.loads(tokenizer_json)
        # These have no influence on the ids of a whole text, and not all of them are supported.
        document |= dict.fromkeys(("post_processor", "decoder", "truncation", "padding"))
        self._tokenizer: Any = Tokenizer.from_json_str(json.dumps(document, ensure_ascii=False))

    def encode(self, texts: Sequence[str], *, literal: bool) -> Ragged | None:
        """The ids of texts, uint32. None: it cannot encode one of them.

        Args:
            texts: the texts.
            literal: special tokens that a text spells stay text.
        """
        try:
            ids, ends = self._tokenizer.encode_batch_flat(list(texts), False, literal)
        except ValueError:
            return None
        return Ragged(np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(ends, np.uint64)).astype(np.int64))


class IdEncoder:
    """Token ids of texts, by the faster of two encoders that give the same.

    Args:
        tokenizer: its `encode_special_tokens` says whether special tokens that a text spells stay text.
        fast: the same tokenizer in `fastokens`. None: it was not proved to give the same ids.
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer", fast: FastTokenizer | None) -> None:
        self._tokenizer, self._fast = tokenizer, fast

    def encode(self, texts: Sequence[str]) -> Ragged:
        """The ids of texts, uint32, without special tokens around them."""
        if self._fast is not None:
            encoded = self._fast.encode(texts, literal=self._tokenizer.encode_special_tokens)
            if encoded is not None:
                return encoded
        return encode_ids(self._tokenizer, texts)

    def encode_request(self, text: str) -> list[int]:
        """The ids of one text of a request, whichever thread it is in."""
        if self._fast is not None and len(text) > _SHORT:
            encoded = _requests().submit(self.encode, [text]).result()
        else:
            encoded = encode_ids(self._tokenizer, [text])  # `encode` would hold Python's lock
        ids: list[int] = encoded.values.tolist()
        return ids


@cache
def _requests() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=PACKAGE)


def encode_ids(tokenizer: "tokenizers.Tokenizer", texts: Sequence[str]) -> Ragged:
    """The ids of texts from `tokenizers`, as `IdEncoder` gives them."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.array([len(one) for one in ids], np.int64)
    values = np.empty(lengths.sum(), np.uint32)
    for end, length, one in zip(np.cumsum(lengths).tolist(), lengths.tolist(), ids, strict=True):
        values[end - length : end] = one
    return Ragged(values, lengths)
