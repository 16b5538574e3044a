"""The networks from scratch that `network:` names for tasks on text.

Transformers builds `Llama` and `Bert`; the others are modules of `maas_ray.tasks.networks.text`.
"""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from maas_ray.errors import InvalidError
from maas_ray.tasks.network import NetworkSpec
from maas_ray.tasks.pretrained import TransformersNetwork

if TYPE_CHECKING:
    import torch


class Llama(TransformersNetwork):
    """A Llama-architecture decoder (Touvron et al. 2023), from scratch."""

    type: Literal["llama"] = "llama"
    """Which network."""
    hidden_size: int = Field(256, ge=8)
    """Width of the residual stream."""
    layers: int = Field(6, ge=1)
    """Number of decoder layers."""
    heads: int = Field(4, ge=1)
    """Number of attention heads; divides `hidden_size`."""
    kv_heads: int | None = Field(None, ge=1)
    """Number of key/value heads (grouped-query attention); divides `heads`. None: as many as `heads`."""
    intermediate_size: int | None = Field(None, ge=8)
    """Width inside the feed-forward block. None: 8/3 of `hidden_size`, rounded up to a multiple of 32."""
    context_length: int | None = Field(None, ge=8)
    """Maximum sequence length in serving, tokens. None: the dataset's sequence length."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary position embedding."""
    tie_embeddings: bool = True
    """Share one matrix between input and output embeddings."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise InvalidError(
                "not_divisible",
                f"hidden_size ({self.hidden_size}) divided by heads ({self.heads}) must be an even whole number; "
                f"try heads: {max(1, self.hidden_size // 64)} with a hidden_size that is a multiple of 64.",
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise InvalidError("not_divisible", f"kv_heads ({self.kv_heads}) must divide heads ({self.heads}).")
        return self

    def build(self, task: Any) -> "torch.nn.Module":
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LlamaConfig(
            vocab_size=task.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or -(-self.hidden_size * 8 // 3 // 32) * 32,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            max_position_embeddings=self.context_length or task.spec.sequence_length,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=self.tie_embeddings,
            bos_token_id=(*task.layout.prefix, task.end_of_text_id)[0],
            eos_token_id=task.end_of_text_id,
            pad_token_id=None,
            use_cache=True,
        )
        return self.trainable(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


class Bert(TransformersNetwork):
    """A BERT-architecture encoder (Devlin et al. 2019), from scratch."""

    type: Literal["bert"] = "bert"
    """Which network."""
    hidden_size: int = Field(128, ge=8)
    """Width of the residual stream."""
    layers: int = Field(2, ge=1)
    """Number of encoder layers."""
    heads: int = Field(2, ge=1)
    """Number of attention heads; divides `hidden_size`."""
    intermediate_size: int | None = Field(None, ge=8)
    """Width inside the feed-forward block. None: four times `hidden_size`."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Fraction of values, and of attention weights, dropped in training."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden_size % self.heads:
            raise InvalidError("not_divisible", f"heads ({self.heads}) must divide hidden_size ({self.hidden_size}).")
        return self

    def build(self, task: Any) -> "torch.nn.Module":
        import torch
        import transformers

        config = transformers.BertConfig(
            vocab_size=task.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate_size or 4 * self.hidden_size,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=task.spec.max_length,
            type_vocab_size=2,
            **task.config_fields(),
        )
        auto = getattr(transformers, task.auto_model)
        return self.trainable(auto.from_config(config, dtype=torch.float32))


class RecurrentText(NetworkSpec):
    """Token embeddings, a recurrent network, then a classifier of the text or of each token."""

    type: Literal["recurrent-text"] = "recurrent-text"
    """Which network."""
    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    """The recurrent unit: Elman's RNN, GRU (Cho et al. 2014), or LSTM (Hochreiter and Schmidhuber 1997)."""
    bidirectional: bool = True
    """Add a second recurrent network that reads from the end."""
    embedding_size: int = Field(128, ge=1)
    """Width of a token's embedding."""
    hidden_size: int = Field(128, ge=1)
    """Width of the recurrent state, in each direction."""
    layers: int = Field(1, ge=1)
    """Number of stacked recurrent layers."""
    pooling: Literal["attention", "mean", "last"] = "attention"
    """Pooling of a text's states into one vector: learnt attention (Yang et al. 2016), the mean, or the last state of
    each direction. Tasks that label tokens ignore it."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Fraction of values dropped in training, after the embeddings and before the classifier."""

    def build(self, task: Any) -> "torch.nn.Module":
        from maas_ray.tasks.networks.text import RecurrentNetwork

        return RecurrentNetwork(
            vocabulary=task.vocab_size,
            labels=len(task.labels),
            cell=self.cell,
            bidirectional=self.bidirectional,
            embedding=self.embedding_size,
            hidden=self.hidden_size,
            layers=self.layers,
            pooling=None if task.per_token else self.pooling,
            dropout=self.dropout,
        )


class AttentionText(NetworkSpec):
    """Token embeddings pooled by attention, regardless of order (Lin et al. 2017), then a classifier of the text."""

    type: Literal["attention-pooling"] = "attention-pooling"
    """Which network."""
    embedding_size: int = Field(128, ge=1)
    """Width of a token's embedding."""
    hidden_size: int = Field(128, ge=1)
    """Width of the layer before the classifier."""
    heads: int = Field(4, ge=1)
    """Number of weighted means, each with its own attention."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Fraction of values dropped in training, after the embeddings and before the classifier."""

    def build(self, task: Any) -> "torch.nn.Module":
        from maas_ray.tasks.networks.text import AttentionNetwork

        return AttentionNetwork(
            vocabulary=task.vocab_size,
            labels=len(task.labels),
            embedding=self.embedding_size,
            hidden=self.hidden_size,
            heads=self.heads,
            dropout=self.dropout,
        )
