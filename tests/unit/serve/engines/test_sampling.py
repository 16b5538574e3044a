"""All engines: penalties, biases, temperature and log probabilities do what their definitions say."""

import asyncio
import dataclasses
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from maas_ray.serve.engines import Engine
from maas_ray.serve.text.types import GenerateRequest, SamplingParams
from tests.support.engines import PROMPTS, TASK, request, run_all


def test_samples_are_drawn_from_the_softmax(engine: Engine, directory: Path) -> None:
    import torch

    draws, temperature = 600, 0.05
    scores = TASK.load_model(directory)(torch.tensor([PROMPTS[1]])).logits[0, -1]
    expected = (scores / temperature).softmax(-1)
    asked = [request(PROMPTS[1], max_tokens=1, temperature=temperature, seed=seed) for seed in range(draws)]
    counts = torch.tensor([ids[0] for ids in run_all(engine, asked)]).bincount(minlength=len(expected))
    # Total variation distance: for so many draws of so few likely tokens it is some hundredths by chance.
    assert 0.5 * (counts / draws - expected).abs().sum() < 0.25
    assert len(counts.nonzero()) > 3


def test_a_tiny_top_p_or_temperature_is_greedy(engine: Engine) -> None:
    likeliest = run_all(engine, [request(PROMPTS[1])])[0]
    assert run_all(engine, [request(PROMPTS[1], temperature=1.0, top_p=1e-6, seed=3)])[0] == likeliest
    assert run_all(engine, [request(PROMPTS[1], temperature=1e-4, seed=3)])[0] == likeliest


def penalised(network: Any, asked: GenerateRequest) -> list[int]:
    """Greedy tokens as OpenAI's API describes the penalties and the biases."""
    import torch

    ids: list[int] = []
    for _ in range(asked.max_tokens):
        with torch.no_grad():
            scores = network(torch.tensor([asked.prompt_ids + ids])).logits[0, -1].double()
        counts = torch.tensor(ids, dtype=torch.long).bincount(minlength=len(scores))
        scores -= asked.sampling.frequency_penalty * counts + asked.sampling.presence_penalty * (counts > 0)
        for token, bias in asked.sampling.logit_bias:
            scores[token] += bias
        ids.append(int(scores.argmax()))
    return ids


def test_penalties_follow_openai_s_definition(cramped: Engine, directory: Path) -> None:
    reference = TASK.load_model(directory)
    penalties = [(0.05, 0.0), (0.0, 0.1), (0.1, 0.2), (2.0, 2.0), (0.1, -0.05), (-2.0, -2.0)]
    asked = [
        request(prompt, max_tokens=60, frequency_penalty=frequency, presence_penalty=presence)
        for prompt in PROMPTS[:2]
        for frequency, presence in penalties
    ]
    found = run_all(cramped, asked)
    assert found == [penalised(reference, one) for one in asked]
    assert len({tuple(ids) for ids in found[: len(penalties)]}) >= 4  # they make a difference


def test_supported_parameters_have_the_right_effect(engine: Engine, directory: Path) -> None:
    """A parameter that an engine claims to support has the right effect."""
    reference = TASK.load_model(directory)
    assert engine.supports >= {"frequency_penalty", "presence_penalty"}
    assert engine.supports <= {one.name for one in dataclasses.fields(SamplingParams)} | {"json_schema"}
    if "logit_bias" in engine.supports:
        asked = request(PROMPTS[0], logit_bias=((5, 100.0), (7, 99.99)), frequency_penalty=0.5)
        assert run_all(engine, [asked])[0] == penalised(reference, asked)
        assert set(run_all(engine, [asked])[0]) >= {5, 7}
    if "logprobs" in engine.supports:
        for changes in ({}, {"temperature": 0.3, "top_p": 0.5, "seed": 3, "presence_penalty": 1.0}):
            ids, logprobs = asyncio.run(run_with_logprobs(engine, request(PROMPTS[0], logprobs=True, **changes)))
            assert logprobs == pytest.approx(own_logprobs(reference, PROMPTS[0], ids), abs=1e-4)


async def run_with_logprobs(engine: Engine, asked: GenerateRequest) -> tuple[list[int], list[float]]:
    ids, logprobs = [], []
    async with aclosing(engine.generate(asked)) as stream:
        async for tokens in stream:
            assert len(tokens.ids) == len(tokens.logprobs)
            ids, logprobs = ids + tokens.ids, logprobs + tokens.logprobs
    return ids, logprobs


def own_logprobs(network: Any, prompt: list[int], ids: list[int]) -> list[float]:
    """Log probabilities of the new tokens, computed with the model itself."""
    import torch

    with torch.no_grad():
        scores = network(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return scores[range(len(ids)), ids].tolist()


def test_noise_draws_from_the_softmax() -> None:
    import torch

    from maas_ray.serve.engines.sampling import gumbel, noise_key

    draws = 40_000
    for seed in (0, 1, -5, 2**62):
        keys = torch.tensor([noise_key(seed, position) for position in range(draws)], dtype=torch.int32)
        assert len(set(keys.tolist())) > draws * 0.99999 - 5
        noise = gumbel(keys, 8)
        assert torch.isfinite(noise).all()
        assert abs(noise.mean().item() - 0.5772) < 0.02
        logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, -3.0, 1.5, -0.5])
        counts = (logits + noise).argmax(-1).bincount(minlength=8)
        expected = logits.softmax(0) * draws
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert chi_square < 24.3  # the 0.999 quantile at 7 degrees of freedom
