"""Small tokenizers of the families that users bring, in Hugging Face layout, built by the `tokenizers` library."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXT = [
    "Hello world, how are you today? The town is far away.",
    "def add(a, b):\n    return a + b\n",
    "Grüße aus Köln und Umgebung: das Wetter ist schön.",
]
SPECIAL = ["<unk>", "<s>", "</s>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _pieces(size: int = 200) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of SentencePiece's BPE with a token for each byte, and its merges."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    names = [*SPECIAL, *_BYTES, *sorted(model["vocab"], key=model["vocab"].get)]
    return {name: index for index, name in enumerate(names)}, [tuple(merge) for merge in model["merges"]]


def _sentence_piece(*, normalizer: Any = None, pre_tokenizer: Any = None, strips: bool = True) -> Tokenizer:
    vocabulary, merges = _pieces()
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.add_special_tokens(SPECIAL)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama_2() -> Tokenizer:
    """A space before the text and after each special token."""
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentence_piece(normalizer=spaces)


def mistral() -> Tokenizer:
    """A space before the text alone, unless it begins with one."""
    return _sentence_piece(pre_tokenizer=pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False))


def gemma() -> Tokenizer:
    """No space before the text."""
    return _sentence_piece(normalizer=normalizers.Replace(" ", "▁"), strips=False)


def t5() -> Tokenizer:
    """Unigram: a space before the text, runs of spaces collapsed, unknown characters lost, an end token added."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def gpt_2() -> Tokenizer:
    """Byte-level BPE."""
    return _byte_level(["<|endoftext|>"])


def llama_3() -> Tokenizer:
    """Byte-level BPE with BOS."""
    tokenizer = _byte_level(["<s>", "</s>"])
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), bos])
    return tokenizer


def qwen() -> Tokenizer:
    """Byte-level BPE of text in NFC."""
    tokenizer = _byte_level(["</s>"])
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def roberta() -> Tokenizer:
    """Byte-level BPE with a space before the text."""
    tokenizer = _byte_level(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt_2": None,
    "llama_3": LLAMA_3_PATTERN,
    "qwen": LLAMA_3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"),
    "gpt_4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""The patterns by which byte-level BPE cuts a text, as the files of these models have them. GPT-2's is built in."""


def of_pattern(name: str, *, pairs: bool = False, prefix: bool = False) -> Tokenizer:
    """Byte-level BPE with a pattern.

    Args:
        name: of `PATTERNS`.
        pairs: any two bytes merge, so that the tokens show where the pattern cuts.
        prefix: a space is put before the text.
    """
    tokenizer = gpt_2()
    if pairs:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [(first, second) for first in alphabet for second in alphabet]
        names = [*alphabet, *(first + second for first, second in merges)]
        tokenizer.model = models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=merges)
    if (pattern := PATTERNS[name]) is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    else:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        after = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, after])
    return tokenizer


def bert() -> Tokenizer:
    """WordPiece: words are joined by spaces, except before punctuation."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "</s>"]
    tokenizer.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A </s>", special_tokens=[("[CLS]", 2), ("</s>", 3)]
    )
    return tokenizer


def openai_gpt() -> Tokenizer:
    """BPE whose tokens mark the ends of words."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<unk>", "</s>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    maker.__name__: maker for maker in (gpt_2, llama_2, llama_3, mistral, gemma, t5, qwen, roberta, bert, openai_gpt)
}
BOS = {"llama_2": 1, "mistral": 1, "gemma": 1, "llama_3": 0, "roberta": 0, "bert": 2}
"""The first token of a text, by the families that have one."""


def save(family: str, directory: Path, **config: Any) -> Path:
    """The family's tokenizer in a directory; `config` is laid over its `tokenizer_config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    FAMILIES[family]().save(str(directory / "tokenizer.json"))
    named = {"eos_token": "<|endoftext|>" if family == "gpt_2" else "</s>"} | config
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    return directory
