"""Base of tasks whose models read a text whole: the tokenizer, padding and masks.

    text ──TextEncoder▶ ids, cut at max_length ──padded▶ stored columns ──trimmed▶ input_ids, attention_mask ──▶ network

A network is called with these two and returns logits (Transformers' models: an output with `logits`). Padding is masked
everywhere, so a row's answer does not depend on the other rows of its batch.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from maas_ray.errors import DataError
from maas_ray.tasks.network import Forward
from maas_ray.tasks.task import Task, TaskSpec
from maas_ray.tasks.text.tokenization import (
    Files,
    FittedTokenizer,
    TextEncoder,
    digests,
    fit_encoder,
    given_tokenizer,
    write_files,
)

if TYPE_CHECKING:
    import torch

# Models whose position embeddings begin after the padding token's id.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "mpnet")


class EncoderTaskSpec(TaskSpec):
    """The fields that these tasks share."""

    tokenizer: FittedTokenizer | str = FittedTokenizer()
    """A tokenizer to fit, or a local directory with a tokenizer in Hugging Face layout (`tokenizer.json`), such as that
    of a pretrained model."""
    max_length: int = Field(256, ge=8)
    """Maximum tokens of a text, including the tokenizer's special ones. Longer texts are truncated."""

    def identity(self) -> dict[str, Any]:
        """The fields, with digests of its files in place of a given tokenizer's path."""
        document = self.document()
        if isinstance(self.tokenizer, str):
            document["tokenizer"] = digests(given_tokenizer(Path(self.tokenizer).expanduser(), "pad_token"))
        return document

    def tokenizer_files(self, texts: Iterable[str], *, of_words: bool = False) -> Files:
        """The given tokenizer, or a tokenizer fitted on texts; `of_words` as for `fit_encoder`."""
        if isinstance(self.tokenizer, str):
            return given_tokenizer(Path(self.tokenizer).expanduser(), "pad_token")
        return fit_encoder(self.tokenizer, texts, self.max_length, of_words=of_words)


class EncoderTask(Task):
    """A fitted task that holds a tokenizer."""

    spec: EncoderTaskSpec
    unit = "rows"
    kind = "predict"
    per_token: ClassVar[bool] = False
    """True if networks return logits for each token, False if for the text as a whole."""

    def __init__(self, spec: EncoderTaskSpec, files: Files) -> None:
        super().__init__(spec)
        self.encoder = TextEncoder(files, spec.max_length)

    @property
    def tokens_per_row(self) -> int:
        return self.spec.max_length

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.encoder.vocab_size

    @property
    def labels(self) -> list[str]:
        """Names of the logits, in order. Empty: networks return something else."""
        return []

    def text_of(self, ids: Any, length: Any) -> str:
        """The text of stored token ids, without special tokens."""
        text: str = self.encoder.tokenizer.decode(ids[: int(length)].tolist(), skip_special_tokens=True)
        return text

    def save_state(self, directory: Path) -> dict[str, Any]:
        write_files(self.encoder.files, directory)
        return {"labels": self.labels} if self.labels else {}

    def config_fields(self) -> dict[str, Any]:
        """Labels, and the padding token, by which decoders find the end of a text."""
        fields: dict[str, Any] = {"pad_token_id": self.encoder.pad_id}
        if self.labels:
            fields["id2label"] = dict(enumerate(self.labels))
            fields["label2id"] = {label: index for index, label in enumerate(self.labels)}
        return fields

    def check_pretrained(self, config: Any, directory: Path) -> None:
        embeds = config.get_text_config().vocab_size
        if self.vocab_size > embeds:
            raise DataError(
                f"the dataset's tokenizer has {self.vocab_size} tokens, but the model in {directory} embeds only "
                f"{embeds}. Prepare the dataset with `tokenizer: {directory}`.",
                code="vocabulary_too_large",
            )
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if positions and config.model_type in _OFFSET_POSITIONS:
            positions -= (config.pad_token_id or 0) + 1
        if positions and self.spec.max_length > positions:
            raise DataError(
                f"the model in {directory} reads {positions} tokens, but the dataset has texts of up to "
                f"{self.spec.max_length}. Prepare the dataset with `max_length: {positions}`.",
                code="texts_too_long",
            )

    @staticmethod
    def logits(model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """Logits in fp32: [B, labels], or [B, T, labels] if per token."""
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits: torch.Tensor = output.logits if hasattr(output, "logits") else output
        return logits.float()
