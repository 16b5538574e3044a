"""`text-generation`: a causal language model over tokens.

Documents are tokenised, begin with the tokenizer's own first token (BOS) if it has one, end with the end-of-text token,
and are packed end to end into sequences of fixed length. In the document of plain text, a spelled-out special token
stays text, so the end-of-text token occurs exactly at the ends of documents; the beginnings of chats are stored.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, StringConstraints

from maas_ray.errors import DataError, InvalidError, RequestError
from maas_ray.tasks.cells import text_of
from maas_ray.tasks.network import Forward
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.rows import AnswerRow, Column, Packing, Ragged, RequestRow, Row, TensorSpec
from maas_ray.tasks.task import Outcomes, Task, TaskSpec
from maas_ray.tasks.text.chat import END, MARKED, PLAIN, START, ChatTemplate
from maas_ray.tasks.text.chat_layouts import CHAT_LAYOUTS, chat_of, contents_of, layout_advice, parse_chat
from maas_ray.tasks.text.chat_tokens import ChatTokens
from maas_ray.tasks.text.documents import Layout, check_model, laid_out, learnt, next_token_losses
from maas_ray.tasks.text.fast.counting import CountingEncoder, Encoded
from maas_ray.tasks.text.fast.encoder import FastTokenizer, IdEncoder, Proof
from maas_ray.tasks.text.fast.proof import Sample, prove
from maas_ray.tasks.text.networks import Llama
from maas_ray.tasks.text.spelling import Spelling, byte_lengths, special_contents
from maas_ray.tasks.text.tokenization import (
    Files,
    FittedTokenizer,
    digests,
    end_of_text_of,
    fit_byte_level,
    given_tokenizer,
    hugging_face_files,
    read_files,
    tokenizer_of,
    write_files,
)
from maas_ray.tasks.traits import Trait, lengths

if TYPE_CHECKING:
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
    documents: Literal["isolated", "joined"] = "isolated"
    """Documents that share a sequence. isolated: a token sees its own document alone, whose positions begin at 0, as in
    serving. joined: a token sees everything before it, as GPT-3 was trained."""
    column: Literal["text", "messages", "conversations", "instruction"] = "text"
    """Kind of rows. text: documents. The others are chats, rendered by the tokenizer's own chat template, or as ChatML
    if the tokenizer is fitted; every token is learnt. messages: OpenAI's `{role, content, tool_calls}`, with `tools`
    if there is such a column. conversations: ShareGPT's `{from, value}`, with `system` and `tools`. instruction:
    Alpaca's `instruction` and `output`, with `input`, `system` and `history`."""

    @property
    def chats(self) -> bool:
        """True if rows are chats."""
        return self.column != "text"

    @property
    def columns(self) -> tuple[str, ...]:
        return CHAT_LAYOUTS[self.column].needed if self.chats else (self.column,)

    @property
    def optional(self) -> tuple[str, ...]:
        return CHAT_LAYOUTS[self.column].optional if self.chats else ()

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("messages",) if self.chats else (self.column,)

    def advice(self, columns: Collection[str]) -> str:
        return layout_advice(columns)

    def identity(self) -> dict[str, Any]:
        """The fields, with digests of its files in place of a given tokenizer's path."""
        document = self.document()
        if self.column == "text":
            del document["column"]  # absent in fingerprints from before chats
        if isinstance(self.tokenizer, str):
            document["tokenizer"] = digests(_given(self.tokenizer))
        return document

    def parse_row(self, row: Row) -> Row | None:
        """`text` as a string, or `messages` as JSON, with `tools` if there are any; None if it is blank."""
        if self.chats:
            return parse_chat(row, self.column)
        text = text_of("text", row["text"])
        return {"text": text} if text is not None and text.strip() else None

    def fit(self, rows: Iterable[Row]) -> "TextGeneration":
        """Fit the tokenizer, or load the given one."""
        sample = Sample()
        texts = sample.passing(contents_of(row) if self.chats else row["text"] for row in rows)
        if isinstance(self.tokenizer, str):
            files = _given(self.tokenizer)
        else:
            files = _fit_tokenizer(self.tokenizer, texts, self.chats)
        sample.fill(texts)
        proof = prove(files["tokenizer.json"], sample.documents)
        return TextGeneration(self, files, Layout.of(files, chats=self.chats), proof=proof)


_MAX_STOPS = 64  # as at /v1/completions
_Stop = Annotated[str, StringConstraints(min_length=1)]


class TextRow(RequestRow):
    """A prompt, and parameters of its continuation."""

    prompt: str
    """The text to continue."""
    max_tokens: int = Field(16, ge=1)
    """Maximum number of new tokens."""
    temperature: float = Field(1.0, ge=0, le=2)
    """0 always takes the most likely token; higher values give more varied text."""
    top_p: float = Field(1.0, ge=0, le=1)
    """Sample among the most likely tokens whose probabilities sum to this. 0 takes the most likely one."""
    stop: _Stop | Annotated[list[_Stop], Field(max_length=_MAX_STOPS)] | None = None
    """A text that ends the answer and is not part of it, or up to 64 such texts."""
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
        files: the tokenizer's files.
        layout: how documents are stored. None: as before layouts were recorded.
        end_of_text: the token that ends a document. None: the tokenizer's `eos_token`.
        proof: whether `fastokens` encodes too.
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
        files: Files,
        layout: Layout | None,
        end_of_text: str | None = None,
        proof: Proof | None = None,
    ) -> None:
        super().__init__(spec)
        self.proof = proof or Proof()
        self._files, self._recorded, self.layout = files, layout is not None, layout or Layout()
        self.tokenizer = tokenizer_of(files)
        # A document that spells out a special token means the text, not the token.
        self.tokenizer.encode_special_tokens = True
        self.end_of_text = end_of_text or end_of_text_of(files)
        token_id = self.tokenizer.token_to_id(self.end_of_text)
        if token_id is None:
            raise DataError(
                f"the tokenizer does not know its end-of-text token {self.end_of_text!r}.", code="no_end_of_text"
            )
        self.end_of_text_id = int(token_id)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def stored(self) -> dict[str, Column]:
        dtype = "uint16" if self.vocab_size <= 1 << 16 else "int32"
        shape = (self.spec.sequence_length,)
        return {"input_ids": Column(dtype, shape)} | {
            name: Column(dtype, shape) for name, dtype in self.layout.further.items()
        }

    @property
    def packing(self) -> Packing:
        return Packing("input_ids", self.spec.sequence_length)

    @property
    def units_per_row(self) -> int:
        return self.spec.sequence_length

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """The token ids of each document, ending with the end-of-text token, and what is stored of them: `Ragged`."""
        if self.spec.chats:
            tokens, counts = laid_out(self._encoded_chats(rows))
        elif self.layout.bytes:
            tokens, counts = laid_out(self._counting_encoder.encode([row["text"] for row in rows]))
        else:
            tokens, counts = self._id_encoder.encode([row["text"] for row in rows]), None
        tokens = Ragged(tokens.values.astype(self.stored["input_ids"].dtype), tokens.lengths)
        return {**self.layout.columns(tokens, counts, self.end_of_text_id)}

    def _encoded_chats(self, rows: list[Row]) -> list[Encoded]:
        if self.chat is None:
            raise DataError(
                "task.tokenizer: does not have a chat template; set `column: text`, or use another tokenizer.",
                code="no_chat_template",
            )
        chats, literal = self._chat_tokens, self.layout.literal
        try:
            rendered = [chats.render(*chat_of(row), answer=False, literal=literal) for row in rows]
            return chats.encode(rendered, counted=self.layout.bytes)
        except RequestError as error:
            raise InvalidError("invalid_chat", str(error)) from error

    @cached_property
    def _fast(self) -> FastTokenizer | None:
        return FastTokenizer(self._files["tokenizer.json"]) if self.proof.holds else None

    @cached_property
    def _id_encoder(self) -> IdEncoder:
        return IdEncoder(self.tokenizer, self._fast)

    @cached_property
    def _counting_encoder(self) -> CountingEncoder:
        return CountingEncoder(self.tokenizer, self._fast if self.proof.counts else None)

    @property
    def remarks(self) -> list[str]:
        return self.proof.remarks

    @cached_property
    def special(self) -> dict[int, str]:
        """Special tokens by id."""
        return special_contents(self.tokenizer)

    @cached_property
    def spelling(self) -> Spelling:
        """The bytes of single tokens."""
        return Spelling(self.tokenizer)

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Lengths of whole documents, before packing."""
        traits = [lengths("tokens", encoded["input_ids"].lengths)]
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
    def _chat_tokens(self) -> ChatTokens:
        """Built for the first chat, since rendering imports a part of Transformers, which takes a second."""
        if self.chat is None:
            raise InvalidError("no_chat_template", "the tokenizer does not have a chat template")
        # Tokens around answers alone did not count before layouts were recorded.
        after_answers = self._recorded or not self.spec.chats
        return ChatTokens(
            self._files, self.chat, after_answers=after_answers, fast=self._fast, counts=self.proof.counts
        )

    @cached_property
    def restarts_after_special(self) -> bool:
        """True if text after a special token is encoded like the beginning of a text (Llama 2: with a space)."""
        tokenizer, token = tokenizer_of(self._files), self.end_of_text
        whole = tokenizer.encode(f"{token}a", add_special_tokens=False).ids
        return bool(whole[1:] == tokenizer.encode("a", add_special_tokens=False).ids)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a text to continue, encoded like the beginning of a document."""
        return [*self.layout.prefix, *self._id_encoder.encode_request(prompt)]

    def chat_ids(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
        """Token ids of the prompt for the assistant's answer to messages, in the form of `messages.canonical_chat`.

        Raises:
            RequestError: the template rejects the messages, or would omit some of them.
            InvalidError: the tokenizer does not have a chat template.
        """
        chats = self._chat_tokens
        return chats.encode_request(chats.render(messages, tools, answer=True))

    def save_state(self, directory: Path) -> dict[str, Any]:
        write_files(self._files, directory)
        self.proof.write(directory)
        return self.layout.state if self._recorded else {}

    def spec_document(self) -> dict[str, Any]:
        document = super().spec_document()
        if not self._recorded:
            del document["documents"]
        return document

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "TextGeneration":
        files = read_files(directory)
        if state:
            return cls(spec, files, Layout.parse(state), proof=Proof.read(directory))
        # From before layouts were recorded, when `special_tokens_map.json` was not read.
        config = {name: content for name, content in files.items() if name != "special_tokens_map.json"}
        return cls(spec.model_copy(update={"documents": "joined"}), files, None, end_of_text_of(config))

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        return self.layout.collated(batch, self.end_of_text_id, isolated=self.spec.documents == "isolated")

    def weights(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        counts = self.layout.learnt_per_row(rows, self.end_of_text_id)
        return super().weights(rows) if counts is None else counts

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        losses = next_token_losses(model, batch)
        return losses.sum() / learnt(batch).sum().clamp(min=1)

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        losses = next_token_losses(model, batch).double().cpu().numpy()
        counted = learnt(batch).cpu().numpy()
        tokens = losses.shape[1]
        starts = np.unique(np.linspace(0, tokens, _POSITIONS, endpoint=False, dtype=np.int64))
        missing = ((0, 0), (0, _POSITIONS - len(starts)))  # padding for sequences with fewer tokens than parts
        stored = "bytes" in batch
        spelled = batch["bytes"].cpu().numpy() if stored else self._byte_lengths[batch["input_ids"].cpu().numpy()]
        return {
            "loss": losses.sum(1),
            "tokens": counted.sum(1),
            "bytes": spelled[:, 1:].sum(1),
            "position_loss": np.pad(np.add.reduceat(losses, starts, axis=1), missing),
            "position_tokens": np.pad(np.add.reduceat(counted.astype(np.int64), starts, axis=1), missing),
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
        return byte_lengths(self.tokenizer)

    def check_pretrained(self, config: Any, directory: Path) -> None:
        isolated = self.spec.documents == "isolated"
        check_model(config, directory, self.vocab_size, self.spec.sequence_length, isolated=isolated)

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


def _fit_tokenizer(spec: FittedTokenizer, texts: Iterable[str], chat: bool) -> dict[str, bytes]:
    """The files of a fitted tokenizer in Hugging Face layout; for chats, with tokens that mark turns."""
    tokenizer = fit_byte_level(spec, texts, [END_OF_TEXT, *((START, END) if chat else ())])
    files = hugging_face_files(tokenizer, {"bos_token": END_OF_TEXT, "eos_token": END if chat else END_OF_TEXT})
    return files | {"chat_template.jinja": (MARKED if chat else PLAIN).encode()}


def _given(directory: str) -> Files:
    """The files of a given tokenizer, with the end-of-text token that its class in Transformers defines."""
    return given_tokenizer(Path(directory).expanduser(), "eos_token")
