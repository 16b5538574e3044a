"""Sampling for Transformers' continuous batching that depends only on the request: its seed, its position, its scores.

The engine takes the highest score of every row. Adding Gumbel noise to the scores turns that into a draw from their
softmax (Gumbel 1954; Maddison, Tarlow, Minka 2014, "A* Sampling"). The noise is a hash of (seed, position, token), so
it does not change with the rest of the batch, nor when a request is evicted and resumed.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
    ContinuousBatchingTemperatureLogitsWarper,
    ContinuousBatchingTopPLogitsWarper,
)
from transformers.generation.logits_process import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

_MASK = (1 << 64) - 1
_BITS = 23  # so that (bits + ½) / 2²³ lies strictly between 0 and 1 in float32


def sampling_processors() -> ContinuousBatchingLogitsProcessorList:
    """Processors with `adjustment`, `temperature`, `top_p` and `seed` for each request. Without a seed it is greedy."""
    processors = [
        _Adjusted(),
        ContinuousBatchingTemperatureLogitsWarper(TemperatureLogitsWarper(1.0)),
        _TopP(TopPLogitsWarper(1.0)),
        _SeededNoise(),
    ]
    batch = ContinuousBatchingLogitsProcessorList(LogitsProcessorList(processors))
    # Each processor needs one row of arguments, but Transformers counts only those that it converts itself.
    batch.tensors_required = len(processors)
    return batch


@dataclass(frozen=True)
class Adjustment:
    """Changes of a request's scores before sampling; see `SamplingParams`."""

    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()


class _Adjusted(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Adds an `Adjustment` to the scores of single tokens."""

    supported_kwargs = {"adjustment": Adjustment}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._changes: list[tuple[int, list[int], list[float]]] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        self._changes = []
        for row, request in enumerate(requests_with_new_token):
            adjustment = request.state.logit_processor_kwargs.get("adjustment")
            if adjustment is not None:
                changes: dict[int, float] = dict(adjustment.logit_bias)
                if adjustment.frequency_penalty or adjustment.presence_penalty:
                    for token, count in Counter(_generated(request.state)).items():
                        penalty = adjustment.frequency_penalty * count + adjustment.presence_penalty
                        changes[token] = changes.get(token, 0.0) - penalty
                self._changes.append((row, list(changes), list(changes.values())))
        return torch.zeros(
            len(requests_with_new_token), dtype=torch.int32
        )  # its real arguments do not have a fixed size

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        if not self._changes:
            return scores
        scores = scores.clone()
        for row, tokens, changes in self._changes:
            scores[row, tokens] += torch.tensor(changes, dtype=scores.dtype, device=scores.device)
        return scores


class _TopP(ContinuousBatchingTopPLogitsWarper):  # type: ignore[misc]
    """Transformers' top-p, skipped for a batch in which no request needs it, because it sorts the vocabulary."""

    _needed = True

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        kwargs = [request.state.logit_processor_kwargs for request in requests_with_new_token]
        self._needed = any(each.get("top_p", 1.0) < 1.0 for each in kwargs)
        tensor: torch.Tensor = super().prepare_tensor_args(requests_with_new_token)
        return tensor

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        return super().__call__(scores, tensor_arg) if self._needed else scores


class _SeededNoise(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Adds Gumbel noise to the rows of requests that have a `seed`."""

    supported_kwargs = {"seed": int}
    ignored_kwargs: tuple[str, ...] = ()
    _needed = True

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        keys = []
        for request in requests_with_new_token:
            state = request.state
            seed = state.logit_processor_kwargs.get("seed")
            # The position of the new token in the sequence does not change when a request is evicted and resumed.
            position = len(state.initial_tokens) + len(state.generated_tokens)
            keys.append(0 if seed is None else noise_key(seed, position))
        self._needed = any(keys)
        return torch.tensor(keys, dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        if not self._needed:
            return scores
        keys = tensor_arg[: scores.size(0)]
        return torch.where(keys.ne(0).unsqueeze(-1), scores + gumbel(keys, scores.size(-1)), scores)


def _generated(state: Any) -> list[int]:
    """The new tokens of a request. After an eviction, the earlier ones are part of its prompt."""
    before = state.initial_tokens[state._true_initial_tokens :] if state._true_initial_tokens else []
    return [*before, *state.generated_tokens]


def noise_key(seed: int, position: int) -> int:
    """A positive 31-bit key for one draw."""
    return (_mix_int(_mix_int(seed & _MASK) + position) >> 33) | 1


def gumbel(keys: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise, float32 [len(keys), vocabulary]: a pure function of the keys."""
    tokens = torch.arange(vocabulary, device=keys.device, dtype=torch.int64)
    bits = _mix((keys.to(torch.int64).unsqueeze(-1) << 32) + tokens)
    uniform = (_shifted(bits, 64 - _BITS).to(torch.float32) + 0.5) * 2.0**-_BITS
    return -torch.log(-torch.log(uniform))


# The finaliser of SplitMix64 (Steele, Lea, Flood 2014), on Python integers and on int64 tensors.


def _mix_int(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix(value: torch.Tensor) -> torch.Tensor:
    value = value + _signed(0x9E3779B97F4A7C15)
    value = (value ^ _shifted(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shifted(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shifted(value, 31)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
