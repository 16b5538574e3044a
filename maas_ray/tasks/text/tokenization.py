"""Tokenizers: fitted here (byte-level BPE), or given in Hugging Face layout.

With byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"), every text has tokens
and is restored byte for byte. With any tokenizer, text that spells a special token stays text.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from maas_ray.errors import DataError, InvalidError
from maas_ray.spec import Spec

if TYPE_CHECKING:
    import tokenizers

Files = dict[str, bytes]
"""A tokenizer's files in Hugging Face layout, by name."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_VOCABULARIES = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
TEMPLATES = "additional_chat_templates"
"""Directory of further chat templates, `NAME.jinja`, beside the tokenizer's files."""
PAD, CLS, SEP, MASK = "[PAD]", "[CLS]", "[SEP]", "[MASK]"


class FittedTokenizer(Spec):
    """A byte-level BPE tokenizer, fitted on the training split."""

    vocab_size: int = Field(8192, ge=257, le=1_000_000)
    """Number of tokens, including the 256 bytes and the special tokens."""
    fit_megabytes: float = Field(64, gt=0)
    """Amount of text to fit on, MB: the first documents in the stable order."""


def fit_byte_level(
    spec: FittedTokenizer, texts: Iterable[str], special: Sequence[str], *, add_prefix_space: bool = False
) -> "tokenizers.Tokenizer":
    """A byte-level BPE tokenizer.

    Args:
        spec: size of the vocabulary and of the text to fit on.
        texts: texts to fit on, read only as far as the spec says.
        special: special tokens, which get the first ids.
        add_prefix_space: encode the first word of a text like any other word.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_some_text(texts, int(spec.fit_megabytes * 1e6)), trainer)
    return tokenizer


def _some_text(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        yield text
        limit -= len(text.encode())
        if limit <= 0:
            return


def read_files(directory: Path) -> Files:
    """The tokenizer's files in a directory in Hugging Face layout.

    Raises:
        DataError: the directory does not hold a tokenizer.
    """
    files = _existing(directory)
    if "tokenizer.json" not in files:
        raise DataError(
            f"{directory} does not hold tokenizer.json; give a directory saved by `save_pretrained`.",
            code="file_missing",
        )
    return files


def _existing(directory: Path) -> Files:
    templates = sorted(f"{TEMPLATES}/{path.name}" for path in (directory / TEMPLATES).glob("*.jinja"))
    names = [name for name in (*TOKENIZER_FILES, *templates) if (directory / name).is_file()]
    return {name: (directory / name).read_bytes() for name in names}


def write_files(files: Files, directory: Path) -> None:
    """Write a tokenizer's files into a directory."""
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


def special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """The special tokens that a tokenizer's files name, such as `eos_token`, read as Transformers reads them.

    Of older files, `special_tokens_map.json` takes precedence. If `tokenizer_config.json` lists all added tokens
    (`added_tokens_decoder`), it is the only file that counts.
    """
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    if "added_tokens_decoder" not in config:
        config |= json.loads(files.get("special_tokens_map.json", b"{}"))
    if isinstance(extra := config.get("extra_special_tokens"), dict):  # a model's own, such as `image_token`
        config |= extra
    contents = {name: token.get("content") if isinstance(token, dict) else token for name, token in config.items()}
    return {
        name: token for name, token in contents.items() if name.endswith("_token") and isinstance(token, str) and token
    }


def end_of_text_of(files: Files) -> str:
    """The token that ends a document.

    Raises:
        DataError: the files do not name it.
    """
    if not (token := special_tokens(files).get("eos_token")):
        raise DataError(
            "the tokenizer's files do not name an eos_token, which must end each document. Add it to "
            'tokenizer_config.json, such as {"eos_token": "</s>"}.',
            code="no_end_of_text",
        )
    return token


def _in_transformers(directory: Path) -> Any:
    """A directory's tokenizer as Transformers loads it, with the defaults of its class. None: it cannot."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError):
        return None


def given_tokenizer(directory: Path, needed: str) -> Files:
    """The files of a tokenizer that a user gives.

    Args:
        directory: holds the tokenizer. Without `tokenizer.json`, Transformers builds it from an older vocabulary.
        needed: a special token, such as `eos_token`. If the files do not name it, the default of the tokenizer's class
            in Transformers is added to `tokenizer_config.json`; GPT-2's and RoBERTa's own files name none.

    Raises:
        DataError: the directory does not hold a tokenizer, or its files contradict each other.
    """
    files, theirs = _existing(directory), None
    if "tokenizer.json" not in files and any((directory / name).is_file() for name in _VOCABULARIES):
        theirs = _in_transformers(directory)
        if (backend := getattr(theirs, "backend_tokenizer", None)) is not None:
            files["tokenizer.json"] = backend.to_str(pretty=True).encode()
    if "tokenizer.json" not in files:
        return read_files(directory)  # raises
    files = _with_added_tokens(files, directory)
    if needed in special_tokens(files):
        return files
    theirs = theirs or _in_transformers(directory)
    token = getattr(theirs, "special_tokens_map", {}).get(needed)
    if token is None:
        return files
    config = json.loads(files.get("tokenizer_config.json", b"{}")) | {needed: str(token)}
    return files | {"tokenizer_config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()}


def _with_added_tokens(files: Files, directory: Path) -> Files:
    """The files, with all added tokens in `tokenizer.json`: Transformers reads them from other files too.

    Raises:
        DataError: a token would get another id than its file says.
    """
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    unknown = {content: of for content, of in _added_tokens(files, directory).items() if content not in known}
    missing = [
        (content, index, fields)
        for content, (index, fields) in unknown.items()
        if index is not None or tokenizer.token_to_id(content) is not None
    ]
    for content, index, fields in missing:
        token = AddedToken(content, **fields)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if index not in (None, actual := tokenizer.token_to_id(content)):
            raise DataError(
                f"{directory}: {content!r} is token {index} by the files beside tokenizer.json, which would number it "
                f"{actual}. Save the tokenizer again with `save_pretrained`.",
                code="token_ids_differ",
            )
    return files | {"tokenizer.json": tokenizer.to_str(pretty=True).encode()} if missing else files


def _added_tokens(files: Files, directory: Path) -> dict[str, tuple[int | None, dict[str, bool]]]:
    """The id, if it is declared, and the fields of each token that the files beside `tokenizer.json` add."""
    added: dict[str, tuple[int | None, dict[str, bool]]] = {}
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    for index, token in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        fields = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in token}
        added[token["content"]] = int(index), fields | {"special": bool(token.get("special"))}
    if (older := directory / "added_tokens.json").is_file():
        for content, index in sorted(json.loads(older.read_bytes()).items(), key=lambda item: int(item[1])):
            added.setdefault(content, (int(index), {"special": False, "normalized": False}))
    for content in special_tokens(files).values():
        added.setdefault(content, (None, {"special": True, "normalized": False}))
    return added


def tokenizer_of(files: Files) -> "tokenizers.Tokenizer":
    """The tokenizer in its files. It neither truncates nor pads, whatever the files say."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def first_tokens(tokenizer: "tokenizers.Tokenizer") -> tuple[int, ...]:
    """The tokens that the tokenizer itself puts before a text, such as BOS."""
    encoding = tokenizer.encode("a")
    added = encoding.special_tokens_mask
    return tuple(encoding.ids[: added.index(0)]) if 0 in added else ()


def digests(files: Files) -> dict[str, str]:
    """SHA-256 of each file of a given tokenizer. They are part of the dataset's fingerprint."""
    return {name: sha256(content).hexdigest() for name, content in files.items()}


def hugging_face_files(tokenizer: "tokenizers.Tokenizer", config: dict[str, Any]) -> Files:
    """The files from which `AutoTokenizer.from_pretrained` loads a tokenizer just fitted."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config, "clean_up_tokenization_spaces": False}
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }


def fit_encoder(spec: FittedTokenizer, texts: Iterable[str], max_length: int, *, of_words: bool) -> Files:
    """The files of a tokenizer for encoders, with BERT's format `[CLS] text [SEP]`.

    Args:
        spec: size of the vocabulary and of the text to fit on.
        texts: texts to fit on.
        max_length: maximum tokens that the model reads.
        of_words: True if its inputs will be lists of words.
    """
    from tokenizers import processors

    tokenizer = fit_byte_level(spec, texts, (PAD, CLS, SEP, MASK), add_prefix_space=of_words)
    marks = [(mark, tokenizer.token_to_id(mark)) for mark in (CLS, SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:1 {SEP}:1", special_tokens=marks
    )
    named = {"pad_token": PAD, "cls_token": CLS, "sep_token": SEP, "mask_token": MASK}
    return hugging_face_files(tokenizer, {**named, "model_max_length": max_length})


class TextEncoder:
    """Encodes texts, or lists of words, as token ids with the tokenizer's own special tokens.

    Args:
        files: the tokenizer's files.
        max_length: maximum tokens of a text, including special ones; longer texts are truncated.
    """

    def __init__(self, files: Files, max_length: int) -> None:
        self.files, self.max_length = files, max_length
        self.tokenizer = tokenizer_of(files)
        # A text that spells out a special token means the text, not the token.
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.enable_truncation(max_length)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    @cached_property
    def pad_id(self) -> int:
        """The padding token's id. Padding is masked, so any token serves if the tokenizer does not define one."""
        named = special_tokens(self.files)
        for name in ("pad_token", "eos_token"):
            token = named.get(name)
            token_id = self.tokenizer.token_to_id(token) if token else None
            if token_id is not None:
                return int(token_id)
        return 0

    @property
    def dtype(self) -> str:
        """Dtype of stored ids."""
        return "uint16" if self.vocab_size <= 1 << 16 else "int32"

    def encode(self, texts: Sequence[str] | Sequence[Sequence[str]], *, words: bool = False) -> list[Any]:
        """The `tokenizers.Encoding` of each text.

        Args:
            texts: strings; with `words`, lists of strings.
            words: True if each text is a list of words.

        Raises:
            InvalidError: a text has no tokens.
        """
        encodings: list[Any] = self.tokenizer.encode_batch(texts, is_pretokenized=words)
        if not all(encodings):
            raise InvalidError("no_tokens", "the tokenizer has no token for anything in the text")
        return encodings

    def padded(self, ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids as stored columns: ids [n, max_length] with padding, and lengths without it, int32 [n]."""
        rows = np.full((len(ids), self.max_length), self.pad_id, self.dtype)
        for row, values in zip(rows, ids, strict=True):
            row[: len(values)] = values
        return rows, np.array([len(values) for values in ids], np.int32)


def trimmed(ids: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """Stored ids and lengths as `input_ids` and `attention_mask`, int64 tensors [n, longest length]."""
    import torch

    longest = int(lengths.max())
    mask = np.arange(longest) < lengths[:, None]
    return {
        "input_ids": torch.from_numpy(ids[:, :longest].astype(np.int64)),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
    }
