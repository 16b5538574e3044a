"""Sampling parameters in each engine's terms."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from maas_ray.serve.engines import parameters
from maas_ray.serve.engines.parameters import for_openvino, for_transformers, for_vllm
from maas_ray.serve.text.types import GenerateRequest, SamplingParams

TRANSLATIONS = [for_openvino, for_transformers, for_vllm]


def request(**sampling: Any) -> GenerateRequest:
    return GenerateRequest([1], max_tokens=1, seed=7, end_ids=(), sampling=SamplingParams(**sampling))


def test_an_engine_supports_only_parameters_that_exist() -> None:
    names = {field.name for field in fields(SamplingParams)}
    for supported in (parameters.OPENVINO, parameters.TRANSFORMERS, parameters.VLLM):
        assert supported <= names


@pytest.mark.parametrize("translate", TRANSLATIONS)
@pytest.mark.parametrize("temperature", [0.0, -0.0, 5e-324, 2.2250738585072014e-308, 1e-45, 2e-38])
def test_a_temperature_that_is_zero_in_float32_is_greedy(translate: Any, temperature: float) -> None:
    assert translate(request(temperature=temperature)) == translate(request(temperature=0.0))
    assert translate(request(temperature=1e-30)) != translate(request(temperature=0.0))


def test_openvino_gets_numbers_that_are_positive_in_float32() -> None:
    values = for_openvino(request(temperature=1e-30, top_p=5e-324))
    assert np.isfinite(np.float32(1e8) / np.float32(values["temperature"]))
    assert np.float32(values["top_p"]) > 0


@pytest.mark.parametrize("translate", TRANSLATIONS)
@pytest.mark.parametrize("top_p", [0, -0.0, 1e-300, 1e-45])
def test_a_top_p_of_zero_is_the_smallest_that_float32_has(translate: Any, top_p: float) -> None:
    assert np.float32(translate(request(top_p=top_p))["top_p"]) == np.finfo(np.float32).tiny


def test_parameters_of_a_request_come_from_fields_of_the_same_names() -> None:
    class Body:
        temperature, top_p, presence_penalty, other = 0.5, None, 1.0, 3

    assert SamplingParams.of(Body(), logprobs=True) == SamplingParams(0.5, presence_penalty=1.0, logprobs=True)
    assert SamplingParams.of(Body()).changed() == ["temperature", "presence_penalty"]
