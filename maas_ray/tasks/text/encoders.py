"""What tasks share whose models read a text whole: the tokenizer, padding, and the networks that can do it.

    text ──TextEncoder▶ ids, cut at max_length ──padded▶ stored columns ──trimmed▶ input_ids, attention_mask ──▶ network

A network is called with these two and gives logits (Transformers' ones: an output that has them). What stands behind a
text's end is masked everywhere, so a row's answer does not depend on the rows that it shares a batch with.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from maas_ray.errors import DataError
from maas_ray.tasks.network import Forward
from maas_ray.tasks.task import Task, TaskSpec
from maas_ray.tasks.text.tokenization import Files, FittedTokenizer, TextEncoder, digests, fit_encoder, read_files

if TYPE_CHECKING:
    import torch

# Their position embeddings begin behind the padding token's id.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "mpnet")


class EncoderTaskSpec(TaskSpec):
    """What a user writes of every such task."""

    tokenizer: FittedTokenizer | str = FittedTokenizer()
    """A tokenizer to fit, or a local directory holding one in Hugging Face layout (`tokenizer.json`), such as that of a
    pretrained model."""
    max_length: int = Field(256, ge=8)
    """Most tokens of a text that the model reads, the tokenizer's special ones among them. What is longer is cut."""

    def identity(self) -> dict[str, Any]:
        """A given tokenizer counts by its files, wherever they lie."""
        document = self.document()
        if isinstance(self.tokenizer, str):
            document["tokenizer"] = digests(read_files(Path(self.tokenizer).expanduser()))
        return document

    def tokenizer_files(self, texts: Iterable[str], *, of_words: bool = False) -> Files:
        """The tokenizer that is given, or one fitted on texts; `of_words` as for `fit_encoder`."""
        if isinstance(self.tokenizer, str):
            return read_files(Path(self.tokenizer).expanduser())
        return fit_encoder(self.tokenizer, texts, self.max_length, of_words=of_words)


class EncoderTask(Task):
    """A fitted task that holds a tokenizer."""

    spec: EncoderTaskSpec
    unit = "rows"
    kind = "predict"
    per_token: ClassVar[bool] = False
    """Whether networks give logits for each token, or for the text as a whole."""

    def __init__(self, spec: EncoderTaskSpec, files: Files) -> None:
        super().__init__(spec)
        self.encoder = TextEncoder(files, spec.max_length)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.encoder.vocab_size

    @property
    def labels(self) -> list[str]:
        """What networks give logits of, in order; empty where they give something else."""
        return []

    def text_of(self, ids: Any, length: Any) -> str:
        """The text of stored token ids, without special tokens."""
        text: str = self.encoder.tokenizer.decode(ids[: int(length)].tolist(), skip_special_tokens=True)
        return text

    def save_state(self, directory: Path) -> dict[str, Any]:
        for name, content in self.encoder.files.items():
            (directory / name).write_bytes(content)
        return {"labels": self.labels} if self.labels else {}

    def config_fields(self) -> dict[str, Any]:
        """Labels, and the padding token: decoders find a text's end by it."""
        fields: dict[str, Any] = {"pad_token_id": self.encoder.pad_id}
        if self.labels:
            fields["id2label"] = dict(enumerate(self.labels))
            fields["label2id"] = {label: place for place, label in enumerate(self.labels)}
        return fields

    def check_pretrained(self, config: Any, directory: Path) -> None:
        embeds = config.get_text_config().vocab_size
        if self.vocab_size > embeds:
            raise DataError(
                f"the dataset's tokenizer has {self.vocab_size} tokens, the model in {directory} embeds "
                f"{embeds}. Prepare the dataset with `tokenizer: {directory}`."
            )
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if positions and config.model_type in _OFFSET_POSITIONS:
            positions -= (config.pad_token_id or 0) + 1
        if positions and self.spec.max_length > positions:
            raise DataError(
                f"the model in {directory} reads {positions} tokens, the dataset has texts of up to "
                f"{self.spec.max_length}. Prepare the dataset with `max_length: {positions}`."
            )

    @staticmethod
    def logits(model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """fp32 [B, labels], or [B, T, labels] where they are of each token."""
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits: torch.Tensor = found.logits if hasattr(found, "logits") else found
        return logits.float()
