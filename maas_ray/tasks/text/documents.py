"""Documents in stored rows of tokens: their first and last tokens, their beginnings, and the loss of their tokens.

A row holds documents laid end to end, and may begin and end inside one. If documents are isolated, positions begin anew
at each of them. Transformers derives from this that a token sees its own document alone, but only if it is called
without a mask and without a cache (`masking_utils._preprocess_mask_arguments`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maas_ray.errors import DataError
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import Ragged
from maas_ray.tasks.text.fast.counting import Encoded
from maas_ray.tasks.text.next_token import token_losses
from maas_ray.tasks.text.spelling import spells_every_text
from maas_ray.tasks.text.tokenization import Files, first_tokens, special_tokens, tokenizer_of

if TYPE_CHECKING:
    import torch

_NOT_LEARNT = -100
_NONE = np.zeros(0, np.uint32)


def laid_out(texts: Sequence[Encoded]) -> tuple[Ragged, np.ndarray | None]:
    """The tokens of texts, uint32, and the bytes of text that each token stands for, if they were counted."""
    ids = [np.asarray(text.ids, np.uint32) for text in texts]
    tokens = Ragged(np.concatenate([_NONE, *ids]), np.array([len(one) for one in ids], np.int64))
    counts = [text.counts for text in texts if text.counts is not None]
    return tokens, np.concatenate(counts) if counts else None


@dataclass(frozen=True)
class Layout:
    """How documents are stored. The defaults are the layout of datasets that do not record theirs.

    Args:
        prefix: tokens before each document and each prompt, such as BOS.
        begins: the beginnings of documents are stored, because the end-of-text token also occurs within them.
        bytes: the number of bytes that each token stands for is stored, because the token alone does not tell it.
        literal: special tokens that the messages of a chat spell stay text.
    """

    prefix: tuple[int, ...] = ()
    begins: bool = False
    bytes: bool = False
    literal: bool = False

    @classmethod
    def of(cls, files: Files, *, chats: bool) -> "Layout":
        """The layout for new datasets.

        Args:
            files: the tokenizer's files.
            chats: documents are chats, whose template writes their first tokens and ends each turn.
        """
        tokenizer, end = tokenizer_of(files), special_tokens(files).get("eos_token", "")
        tokenizer.encode_special_tokens = True
        # Unigram takes a spelled-out token from its vocabulary.
        ends_within = tokenizer.token_to_id(end) in tokenizer.encode(end, add_special_tokens=False).ids
        return cls(
            prefix=() if chats else first_tokens(tokenizer),
            begins=chats or ends_within,
            bytes=not spells_every_text(files["tokenizer.json"]),
            literal=chats,
        )

    @classmethod
    def parse(cls, state: Mapping[str, Any]) -> "Layout":
        """The layout in a task's state."""
        if not state:
            return cls()
        flags = {name: bool(state.get(name, False)) for name in ("begins", "bytes", "literal")}
        return cls(tuple(state["prefix"]), **flags)

    @property
    def state(self) -> dict[str, Any]:
        """The record in a task's state; `parse` reads it."""
        return {name: value for name, value in asdict(self).items() if name != "literal" or value}

    @property
    def further(self) -> dict[str, str]:
        """Dtypes of the columns that are stored beside the tokens."""
        return ({"begins": "uint8"} if self.begins else {}) | ({"bytes": "int32"} if self.bytes else {})

    def columns(self, tokens: Ragged, counts: np.ndarray | None, end: int) -> dict[str, Ragged]:
        """The columns of documents.

        Args:
            tokens: the tokens of each text.
            counts: the bytes of text that each token stands for, int [tokens], if they are stored.
            end: id of the end-of-text token, which the template of a chat may have written already.
        """
        ids, lengths, prefix = tokens.values, tokens.lengths, len(self.prefix)
        written = np.zeros(len(lengths), bool)
        if self.begins:
            some = lengths > 0
            written[some] = ids[np.cumsum(lengths)[some] - 1] == end
        totals = prefix + lengths + ~written
        starts = np.cumsum(totals) - totals
        ends = (starts + totals - 1)[~written]
        of_text = np.ones(int(totals.sum()), bool)
        of_text[ends] = False
        for index in range(prefix):
            of_text[starts + index] = False
        laid = np.empty(len(of_text), ids.dtype)
        laid[of_text], laid[ends] = ids, end
        for index, token in enumerate(self.prefix):
            laid[starts + index] = token
        columns = {"input_ids": laid}
        if self.begins:
            columns["begins"] = np.zeros(len(laid), np.uint8)
            columns["begins"][starts[totals > 0]] = 1
        if self.bytes:
            columns["bytes"] = np.zeros(len(laid), np.int32)
            columns["bytes"][of_text] = counts
        return {name: Ragged(values, totals) for name, values in columns.items()}

    def collated(self, batch: Mapping[str, np.ndarray], end: int, *, isolated: bool) -> dict[str, "torch.Tensor"]:
        """Stored columns [B, T] as int64 tensors.

        `input_ids`; `labels`, those of the same position as in Transformers, if some tokens are not learnt (-100);
        `position_ids`, if documents are isolated; `bytes`, if they are stored.

        Args:
            batch: the stored columns.
            end: id of the end-of-text token.
            isolated: a token sees its own document alone.
        """
        import torch

        ids = batch["input_ids"].astype(np.int64)
        columns = {"input_ids": ids}
        begins = self._begins(batch, end)
        if self.prefix:
            columns["labels"] = np.where(begins, _NOT_LEARNT, ids)
        if isolated:
            index = np.arange(ids.shape[1])
            columns["position_ids"] = index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)
        if self.bytes:
            columns["bytes"] = batch["bytes"].astype(np.int64)
        return {name: torch.from_numpy(values) for name, values in columns.items()}

    def learnt_per_row(self, batch: Mapping[str, np.ndarray], end: int) -> np.ndarray | None:
        """The number of learnt tokens of each stored row, int64 [B]. None: rows do not differ in it."""
        if not self.prefix:
            return None
        return np.asarray((~self._begins(batch, end)[:, 1:]).sum(axis=1), np.int64)

    def _begins(self, batch: Mapping[str, np.ndarray], end: int) -> np.ndarray:
        """True for the first token of each document, bool [B, T]."""
        if self.begins:
            return batch["begins"].astype(bool)
        begins = np.zeros(batch["input_ids"].shape, bool)
        begins[:, 1:] = batch["input_ids"][:, :-1] == end
        return begins


def next_token_losses(model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    """Cross-entropy of each token after the first, nats; 0 if it is not learnt. [B, T] → fp32 [B, T - 1]."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
    return token_losses(model, _labels(batch), inputs)


def learnt(batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    """True for each token after the first that is learnt, bool [B, T - 1]."""
    return _labels(batch) != _NOT_LEARNT


def _labels(batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    return batch.get("labels", batch["input_ids"])[:, 1:]


def check_model(config: Any, directory: Path, vocab_size: int, sequence_length: int, *, isolated: bool) -> None:
    """Refuse a pretrained model that cannot read the documents of a dataset.

    Args:
        config: the model's configuration.
        directory: of the model.
        vocab_size: number of token ids of the dataset's tokenizer.
        sequence_length: tokens of a stored row.
        isolated: a token sees its own document alone.

    Raises:
        DataError: it cannot.
    """
    text = config.get_text_config()
    embeds = text.vocab_size
    if vocab_size > embeds:
        raise DataError(
            f"the dataset's tokenizer has {vocab_size} tokens, but the model in {directory} embeds only "
            f"{embeds}. Prepare the dataset with `tokenizer: {directory}`.",
            code="vocabulary_too_large",
        )
    positions = getattr(text, "max_position_embeddings", None)
    # Rotary positions go on for ever; learnt ones end, with an IndexError or a device's assertion.
    if positions and sequence_length > positions and not getattr(text, "rope_parameters", None):
        raise DataError(
            f"the model in {directory} reads {positions} tokens, but the dataset has sequences of "
            f"{sequence_length}. Prepare the dataset with `sequence_length: {positions}`.",
            code="texts_too_long",
        )
    if isolated and (reason := sees_other_documents(config)):
        raise DataError(
            f"the documents of the dataset are isolated, but the model in {directory} ({config.model_type}) "
            f"{reason}. Prepare the dataset with `documents: joined`.",
            code="documents_not_isolated",
        )


def sees_other_documents(config: Any) -> str:
    """The reason why a causal language model cannot isolate documents. Empty: it can.

    Args:
        config: the model's configuration.
    """
    import inspect

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM._model_mapping.get(type(config), None)
    model = model[0] if isinstance(model, tuple) else model
    if model is None:
        return ""
    if getattr(model, "_is_stateful", False):
        return "reads a sequence as a recurrent state"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "does not take positions"
    return ""
