"""`text-generation`: a causal language model over tokens.

Documents are tokenised, end with the end-of-text token, and are packed end to end into sequences of fixed length. Text
that spells a special token stays text, so the end-of-text token occurs exactly at the ends of documents.
"""

import json
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, StringConstraints

from maas_ray.errors import DataError, InvalidError, RequestError
from maas_ray.tasks.network import Forward
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.rows import AnswerRow, Column, Packing, RequestRow, Row, TensorSpec
from maas_ray.tasks.task import Outcomes, Task, TaskSpec
from maas_ray.tasks.text.chat import END, MARKED, PLAIN, START, ChatTemplate, contents_of, parse_chat
from maas_ray.tasks.text.networks import Llama
from maas_ray.tasks.text.tokenization import FittedTokenizer, digests, fit_byte_level, hugging_face_files, read_files
from maas_ray.tasks.traits import Trait, lengths

if TYPE_CHECKING:
    import tokenizers
    import torch

END_OF_TEXT = "<|endoftext|>"
_POSITIONS = 16  # parts of a sequence with a loss of their own


class TextGenerationSpec(TaskSpec):
    """`task: {type: text-generation}`"""

    type: Literal["text-generation"] = "text-generation"
    """Which task."""
    tokenizer: FittedTokenizer | str = FittedTokenizer()
    """A tokenizer to fit, or a local directory with a tokenizer in Hugging Face layout (`tokenizer.json`)."""
    sequence_length: int = Field(512, ge=8)
    """Tokens in a training sequence."""
    column: Literal["text", "messages"] = "text"
    """Kind of rows. text: documents. messages: chats, lists of `{role: user, content: …}`, rendered by the tokenizer's
    own chat template, or as ChatML if the tokenizer is fitted. Every token of a chat is learnt."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.columns

    def identity(self) -> dict[str, Any]:
        """The fields, with digests of its files in place of a given tokenizer's path."""
        document = self.document()
        if self.column == "text":
            del document["column"]  # absent in fingerprints from before chats
        if isinstance(self.tokenizer, str):
            document["tokenizer"] = digests(read_files(Path(self.tokenizer).expanduser()))
        return document

    def parse_row(self, row: Row) -> Row | None:
        """`text` as a string, or `messages` as JSON; None if it is blank."""
        if self.column == "messages":
            return parse_chat(row["messages"])
        text = row["text"]
        if text is None:
            return None
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise InvalidError("not_utf_8", f"not UTF-8: byte {text[error.start]:#04x} at {error.start}") from error
        if not isinstance(text, str):
            raise InvalidError("wrong_type", f"text is a {type(text).__name__}, not a string")
        return {"text": text} if text.strip() else None

    def fit(self, rows: Iterable[Row]) -> "TextGeneration":
        """Fit the tokenizer, or load the given one."""
        if isinstance(self.tokenizer, str):
            return TextGeneration(self, Path(self.tokenizer).expanduser())
        chat = self.column == "messages"
        texts = (contents_of(row) if chat else row["text"] for row in rows)
        return TextGeneration(self, fitted=_fit_tokenizer(self.tokenizer, texts, chat))


_Stop = Annotated[str, StringConstraints(min_length=1)]


class TextRow(RequestRow):
    """A prompt, and parameters of its continuation."""

    prompt: str
    """The text to continue."""
    max_tokens: int = Field(16, ge=1)
    """Maximum number of new tokens."""
    temperature: float = Field(1.0, ge=0, le=2)
    """0 always takes the most likely token; higher values give more varied text."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the most likely tokens whose probabilities sum to this."""
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    """A text that ends the answer and is not part of it, or up to four such texts."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """Seed: equal requests with equal seeds get equal answers. null: a new seed each time."""


class TextAnswer(AnswerRow):
    """The model's continuation."""

    text: str
    """The text after the prompt."""


class TextGeneration(Task):
    """A fitted `text-generation` task: it holds the tokenizer.

    Args:
        spec: the fields under `task:`.
        directory: a directory with a tokenizer in Hugging Face layout.
        fitted: instead of `directory`, the files of a tokenizer.
    """

    spec: TextGenerationSpec
    spec_type = TextGenerationSpec
    networks = (Llama, Pretrained)
    auto_model = "AutoModelForCausalLM"
    unit = "tokens"
    kind = "generate"
    headline = ("perplexity", "loss")
    request, answer = TextRow, TextAnswer

    def __init__(
        self,
        spec: TextGenerationSpec,
        directory: Path | None = None,
        fitted: dict[str, bytes] | None = None,
    ) -> None:
        super().__init__(spec)
        from tokenizers import Tokenizer

        self._files = fitted or read_files(directory or Path("."))
        self.tokenizer = Tokenizer.from_buffer(self._files["tokenizer.json"])
        # A document that spells out a special token means the text, not the token.
        self.tokenizer.encode_special_tokens = True
        self.end_of_text = _end_of_text(self._files)
        token_id = self.tokenizer.token_to_id(self.end_of_text)
        if token_id is None:
            raise DataError(
                f"the tokenizer in {directory} lacks its end-of-text token {self.end_of_text!r}.", code="no_end_of_text"
            )
        self.end_of_text_id = int(token_id)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def stored(self) -> dict[str, Column]:
        dtype = "uint16" if self.vocab_size <= 1 << 16 else "int32"
        return {"input_ids": Column(dtype, (self.spec.sequence_length,))}

    @property
    def packing(self) -> Packing:
        return Packing("input_ids", self.spec.sequence_length)

    @property
    def units_per_row(self) -> int:
        return self.spec.sequence_length

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """One array of token ids per document, ending with the end-of-text token."""
        dtype, end = self.stored["input_ids"].dtype, [self.end_of_text_id]
        if self.spec.column == "messages":
            chats = [self._whole_chat(row["messages"]) for row in rows]
            # The template may have written the end token already.
            return {"input_ids": [np.array(ids if ids[-1:] == end else ids + end, dtype=dtype) for ids in chats]}
        encodings = self.tokenizer.encode_batch_fast([row["text"] for row in rows], add_special_tokens=False)
        return {"input_ids": [np.array(encoding.ids + end, dtype=dtype) for encoding in encodings]}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Lengths of whole documents, before packing."""
        traits = [lengths("tokens", map(len, encoded["input_ids"]))]
        if self.spec.column == "text":
            traits.append(lengths("characters", (len(row["text"]) for row in rows)))
        return traits

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The text of a sequence, which may begin and end inside a document."""
        return {"text": self.tokenizer.decode(stored["input_ids"].tolist(), skip_special_tokens=False)}

    @cached_property
    def chat(self) -> ChatTemplate | None:
        """The tokenizer's chat template, if it has one."""
        return ChatTemplate.of(self._files)

    @cached_property
    def _chat_tokenizer(self) -> "tokenizers.Tokenizer":
        """Built for the first chat, since rendering imports a part of Transformers, which takes a second."""
        if self.chat is not None and self.chat.writes_special_tokens(self.tokenizer):
            from tokenizers import Tokenizer

            # Special tokens that the template writes must become tokens; `self.tokenizer` treats them as text.
            return Tokenizer.from_buffer(self._files["tokenizer.json"])
        return self.tokenizer

    def chat_ids(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
        """Token ids of the prompt for the assistant's answer to messages.

        Raises:
            RequestError: the template rejects the messages, or would omit some of them.
            InvalidError: the tokenizer does not have a chat template.
        """
        if self.chat is None:
            raise InvalidError("no_chat_template", "the tokenizer does not have a chat template")
        ids: list[int] = self._chat_tokenizer.encode(self.chat.render(messages, tools), add_special_tokens=False).ids
        return ids

    def _whole_chat(self, messages: str) -> list[int]:
        if self.chat is None:
            raise DataError(
                "task.tokenizer: does not have a chat template; set `column: text`, or use another tokenizer.",
                code="no_chat_template",
            )
        try:
            text = self.chat.whole(json.loads(messages))
        except RequestError as error:
            raise InvalidError("invalid_chat", str(error)) from error
        ids: list[int] = self._chat_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def save_state(self, directory: Path) -> dict[str, Any]:
        for name, content in self._files.items():
            (directory / name).write_bytes(content)
        return {}

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "TextGeneration":
        return cls(spec, directory)

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        import torch

        return {"input_ids": torch.from_numpy(batch["input_ids"].astype(np.int64))}

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        return _next_token_losses(model, batch["input_ids"]).mean()

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        losses = _next_token_losses(model, batch["input_ids"]).double().cpu().numpy()
        ids = batch["input_ids"][:, 1:].cpu().numpy()
        rows, tokens = losses.shape
        starts = np.unique(np.linspace(0, tokens, _POSITIONS, endpoint=False, dtype=np.int64))
        sums = np.add.reduceat(losses, starts, axis=1)
        counts = np.diff(starts, append=tokens)
        missing = ((0, 0), (0, _POSITIONS - len(starts)))  # padding for sequences with fewer tokens than parts
        return {
            "loss": losses.sum(1),
            "tokens": np.full(rows, tokens, np.int64),
            "bytes": self._byte_lengths[ids].sum(1),
            "position_loss": np.pad(sums, missing),
            "position_tokens": np.pad(np.tile(counts, (rows, 1)), missing),
        }

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats per token, `perplexity` = exp(loss), and `bits_per_byte` of the text."""
        total = float(outcomes["loss"].sum())
        loss = total / float(outcomes["tokens"].sum())
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if length := int(outcomes["bytes"].sum()):
            metrics["bits_per_byte"] = total / math.log(2) / length
        return metrics

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        """Number of bytes of text that each token stands for, int64 [vocabulary]; 0 for special tokens."""
        special = {index for index, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        if '"ByteLevel"' in json.dumps(json.loads(self._files["tokenizer.json"]).get("decoder")):
            # Its alphabet has one character per byte. Decoding a single token could yield half a character.
            lengths = [len(self.tokenizer.id_to_token(index) or "") for index in range(self.vocab_size)]
        else:
            tokens = self.tokenizer.decode_batch([[index] for index in range(self.vocab_size)])
            lengths = [len(token.encode()) for token in tokens]
        return np.array([0 if index in special else length for index, length in enumerate(lengths)], np.int64)

    def check_pretrained(self, config: Any, directory: Path) -> None:
        embeds = config.get_text_config().vocab_size
        if self.vocab_size > embeds:
            raise DataError(
                f"the dataset's tokenizer has {self.vocab_size} tokens, but the model in {directory} embeds only "
                f"{embeds}. Prepare the dataset with `tokenizer: {directory}`.",
                code="vocabulary_too_large",
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("prompt", "BYTES", (-1,)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("text", "BYTES", (-1,)),)

    def to_inputs(self, row: TextRow) -> dict[str, Any]:
        return {"prompt": row.prompt}

    def to_answer(self, outputs: Mapping[str, Any]) -> TextAnswer:
        return TextAnswer(text=outputs["text"])


def _next_token_losses(model: Forward, input_ids: "torch.Tensor") -> "torch.Tensor":
    """Cross-entropy of each token after the first, nats. input_ids: [B, T] → fp32 [B, T - 1]."""
    import torch.nn.functional as F

    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), input_ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(input_ids), -1)


def _fit_tokenizer(spec: FittedTokenizer, texts: Iterable[str], chat: bool) -> dict[str, bytes]:
    """The files of a fitted tokenizer in Hugging Face layout; for chats, with tokens that mark turns."""
    tokenizer = fit_byte_level(spec, texts, [END_OF_TEXT, *((START, END) if chat else ())])
    files = hugging_face_files(tokenizer, {"bos_token": END_OF_TEXT, "eos_token": END if chat else END_OF_TEXT})
    return files | {"chat_template.jinja": (MARKED if chat else PLAIN).encode()}


def _end_of_text(files: dict[str, bytes]) -> str:
    token = json.loads(files.get("tokenizer_config.json", b"{}")).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if not token:
        raise DataError(
            "tokenizer_config.json does not name an eos_token, which must end each document.", code="no_end_of_text"
        )
    return str(token)
