"""Sampling parameters in the terms of each engine, and the ones that each engine honours.

Imports no engine: OpenVINO's process must not load Torch.
"""

import hashlib
from typing import Any

from maas_ray.serve.text.types import GenerateRequest

OPENVINO = frozenset({"frequency_penalty", "presence_penalty", "logprobs"})
# Transformers' log probabilities include the processors' changes, even the sampling noise, so they are not reported.
TRANSFORMERS = frozenset({"frequency_penalty", "presence_penalty", "logit_bias"})
VLLM = frozenset({"frequency_penalty", "presence_penalty", "logit_bias"})


def for_openvino(request: GenerateRequest) -> dict[str, Any]:
    """Attributes of `openvino_genai.GenerationConfig`."""
    sampling = request.sampling
    drawn = {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        # The generator uses 32 bits of its seed; these depend on all bits of the request's.
        "rng_seed": int.from_bytes(hashlib.sha256(str(request.seed).encode()).digest()[:4]),
    }
    return {
        **({} if sampling.greedy else drawn),
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logprobs": int(sampling.logprobs),
    }


def for_transformers(request: GenerateRequest) -> dict[str, Any]:
    """Arguments of the processors in `engines.sampling`."""
    from maas_ray.serve.engines.sampling import Adjustment

    sampling = request.sampling
    adjustment = Adjustment(sampling.frequency_penalty, sampling.presence_penalty, sampling.logit_bias)
    drawn = {"temperature": float(sampling.temperature), "top_p": float(sampling.top_p), "seed": request.seed}
    return {
        **({} if sampling.greedy else drawn),
        **({"adjustment": adjustment} if adjustment != Adjustment() else {}),
    }


def for_vllm(request: GenerateRequest) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams`."""
    sampling = request.sampling
    return {
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "top_p": 1.0 if sampling.greedy else sampling.top_p,
        "seed": None if sampling.greedy else request.seed,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": dict(sampling.logit_bias) or None,
    }
