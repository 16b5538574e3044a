"""The loss of each next token, without the logits of a whole batch.

The logits of a batch are its largest tensor by far: 8 rows of 4,096 tokens over 128,256 tokens are 8 GB in 16 bits, and
twice as much in each of the fp32 copies that the loss needs. So the head and the loss are computed for some tokens at
a time and, in the backward pass, once more.

The head is called inside the model's own forward pass, so that whatever is hooked to it (ZeRO 3 gathers its weight
there) sees one call as before. A head that is not the last thing a model does (Gemma 2 caps its logits, Cohere and
Granite scale them) is left to the model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from maas_ray.tasks.network import Forward
from maas_ray.tasks.pretrained import module_of

if TYPE_CHECKING:
    import torch

MAX_LOGITS = 1 << 24
"""Logits that are held at a time: 64 MiB in fp32."""


class _Output(tuple):  # type: ignore[type-arg]
    """The output of a base model that has only its last states."""

    @property
    def last_hidden_state(self) -> Any:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


_heads: "WeakKeyDictionary[torch.nn.Module, torch.nn.Linear | None]" = WeakKeyDictionary()


def token_losses(model: Forward, labels: "torch.Tensor", inputs: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    """Cross-entropy of labels, nats, fp32 [B, T - 1]; 0 if a label is -100.

    Args:
        model: a causal language model of Transformers, or an engine that wraps one.
        labels: the token after each position but the last, int64 [B, T - 1].
        inputs: tensors that the model is called with, [B, T].
    """
    head = _last_head(module_of(model))
    if head is None or labels.numel() * head.out_features <= MAX_LOGITS:
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        return _cross_entropy(logits.flatten(0, 1), labels.flatten()).view(labels.shape)
    with _losses_for_logits(head, labels):
        losses: torch.Tensor = model(**inputs, use_cache=False).logits
    return losses


@contextmanager
def _losses_for_logits(head: "torch.nn.Linear", labels: "torch.Tensor") -> Iterator[None]:
    """While this is open, the head answers with the losses of labels, fp32 [B, T - 1], in place of logits."""
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    def of_some(states: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        return _cross_entropy(F.linear(states, head.weight, head.bias), targets)

    def losses(states: "torch.Tensor") -> "torch.Tensor":
        size = max(1, MAX_LOGITS // head.out_features)
        parts = zip(
            torch.split(states[:, :-1].flatten(0, 1), size),
            torch.split(labels.to(states.device).flatten(), size),
            strict=True,
        )
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(of_some, *part, use_reentrant=False) for part in parts]).view(labels.shape)
        return torch.cat([of_some(*part) for part in parts]).view(labels.shape)

    vars(head)["forward"] = losses  # before the method of its class
    try:
        yield
    finally:
        del vars(head)["forward"]


def _cross_entropy(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    import torch.nn.functional as F

    return F.cross_entropy(logits.float(), labels, reduction="none")


def _last_head(module: "torch.nn.Module") -> "torch.nn.Linear | None":
    """The linear layer whose output is the model's logits as it is. None: there is no such layer."""
    if module not in _heads:
        _heads[module] = _found_head(module)
    return _heads[module]


def _found_head(module: Any) -> "torch.nn.Linear | None":
    import torch
    from transformers import PreTrainedModel

    head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    if type(head) is not torch.nn.Linear:
        return None
    # A copy on the meta device shows what the model does with the head's output, without memory and without a pass of
    # the engine. Its layers are left out, because some look at values, which the meta device does not have.
    with torch.device("meta"), torch.no_grad():
        copy = type(module)._from_config(module.config).eval()
        states = _Output([torch.zeros(1, 2, head.in_features)])
        copy.base_model.forward = lambda *_, **__: states
        seen: list[Any] = []
        copy.get_output_embeddings().register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            logits = copy(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False).logits
        except (RuntimeError, AttributeError, TypeError, ValueError):
            return None  # a model of another build
    return head if len(seen) == 1 and logits is seen[0] else None
