"""All engines: the answer to a request depends on that request alone."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from maas_ray.errors import DeploymentError
from maas_ray.serve.engines import Engine
from maas_ray.serve.text.types import SamplingParams
from tests.support.engines import PAGE_BYTES, PROMPTS, TASK, Make, greedy, request, run, run_all
from tests.support.errors import raises


def test_greedy_answers_equal_those_of_generate(engine: Engine, directory: Path) -> None:
    reference = TASK.load_model(directory)
    long = (PROMPTS[0] + PROMPTS[2] + PROMPTS[3]) * 4
    asked = [
        request(prompt, max_tokens=tokens)
        for prompt, tokens in [*((prompt, 24) for prompt in PROMPTS), ([5], 60), (PROMPTS[0], 1), (long[:110], 18)]
    ]
    for one, ids in zip(asked, run_all(engine, asked), strict=True):
        assert ids == greedy(reference, one.prompt_ids, one.max_tokens)


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(engine: Engine) -> None:
    asked = request(PROMPTS[0], temperature=1.0, top_p=0.95, seed=11)
    alone = run_all(engine, [asked])[0]
    others = [request(prompt, temperature=0.7, seed=number) for number, prompt in enumerate(PROMPTS * 5)]
    assert run_all(engine, [*others, asked, asked])[-2:] == [alone, alone]
    for seed in (12, 11 + 2**32, 11 - 2**63):
        assert run_all(engine, [replace(asked, seed=seed)])[0] != alone


def test_an_answer_stops_after_an_end_token(engine: Engine) -> None:
    ids = run_all(engine, [request(PROMPTS[1])])[0]
    end = ids[5]
    assert run_all(engine, [request(PROMPTS[1], end_ids=(end, 319))])[0] == ids[: ids.index(end) + 1]


def test_evicted_sequences_resume_without_a_change(make: Make, cramped: Engine) -> None:
    longest = request(PROMPTS[0], max_tokens=128 - len(PROMPTS[0]))
    # Three of them do not fit together: they are evicted and resumed, and lose nothing by it.
    drawn = replace(longest, sampling=SamplingParams(), seed=5)
    alone = run_all(cramped, [longest])[0], run_all(cramped, [drawn])[0]
    assert len(alone[0]) == 128 - len(PROMPTS[0])
    assert run_all(cramped, [longest, drawn, drawn]) == [alone[0], alone[1], alone[1]]
    with raises(DeploymentError, "kv_cache_too_small", "kv_cache_gb"):
        make(kv_cache_bytes=3 * PAGE_BYTES)


def test_a_cancelled_request_frees_its_slot(make: Make) -> None:
    engine = make(max_requests=1, context=100_000)

    async def leave_early() -> list[int]:
        async with aclosing(engine.generate(request(PROMPTS[0], max_tokens=99_000))) as stream:
            await anext(stream)
        async with asyncio.timeout(10):  # the one that was left would take minutes
            return await run(engine, request(PROMPTS[1]))

    assert len(asyncio.run(leave_early())) == 24


@pytest.mark.parametrize("make", ["transformers"], indirect=True)
def test_a_transformers_engine_that_dies_fails_its_requests_and_its_check(make: Make) -> None:
    engine = make()

    def die(**_: object) -> None:
        raise RuntimeError("out of memory")

    async def ask() -> None:
        stream = engine.generate(request(PROMPTS[0], max_tokens=100))
        await anext(stream)
        engine._manager.model.forward = die
        async for _ in stream:
            pass

    engine.check()
    with raises(DeploymentError, "engine_failed", "out of memory"):
        asyncio.run(ask())
    with raises(DeploymentError, "engine_stopped"):
        engine.check()
    with raises(DeploymentError, "engine_stopped"):
        run_all(engine, [request(PROMPTS[0])])


@pytest.mark.parametrize("make", ["openvino"], indirect=True)
@pytest.mark.parametrize("idle", [True, False])
def test_an_openvino_engine_that_dies_fails_its_requests_and_its_check(make: Make, idle: bool) -> None:
    engine = make(context=100_000)

    async def ask() -> None:
        stream = engine.generate(request(PROMPTS[0], max_tokens=99_000))
        await anext(stream)
        engine._process.kill()
        async for _ in stream:
            pass

    engine.check()
    if idle:
        engine._process.kill()
        engine._receiver.join(10)
    else:
        with raises(DeploymentError, "engine_failed", "signal 9"):
            asyncio.run(ask())
    with raises(DeploymentError, "engine_stopped", "signal 9"):
        engine.check()
    with raises(DeploymentError, "engine_stopped", "signal 9"):
        run_all(engine, [request(PROMPTS[0])])
