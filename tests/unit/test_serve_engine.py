"""The Transformers engine: what a request gets depends on that request alone."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from maas_ray.errors import DeploymentError
from maas_ray.serve.engines import GenerateRequest
from tests.bundles import TEXT, save_bundle, text_task

TASK = text_task()
PROMPTS = [TASK.tokenizer.encode(text).ids for text in TEXT]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(TASK, tmp_path_factory.mktemp("bundle"))


def start(directory: Path, **changes):
    from maas_ray.serve.engines.transformers import TransformersEngine, quiet

    quiet()
    options = {"context": 128, "max_requests": 8, "kv_cache_bytes": 10**9, "prefill_tokens": 64}
    return TransformersEngine(TASK.load_model(directory), **(options | changes))


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator:
    engine = start(directory)
    yield engine
    engine.close()


def request(prompt: list[int], **changes) -> GenerateRequest:
    fields = {"max_tokens": 24, "temperature": 0.0, "top_p": 1.0, "seed": 0, "end_ids": ()}
    return GenerateRequest(prompt_ids=prompt, **(fields | changes))


async def run(engine, asked: GenerateRequest) -> list[int]:
    ids = []
    async with aclosing(engine.generate(asked)) as stream:
        async for some in stream:
            ids += some
    return ids


def run_all(engine, requests: list[GenerateRequest]) -> list[list[int]]:
    async def together() -> list[list[int]]:
        return await asyncio.gather(*(run(engine, asked) for asked in requests))

    return asyncio.run(together())


def test_greedy_is_that_of_generate(engine, directory: Path) -> None:
    import torch

    reference = TASK.load_model(directory)
    found = run_all(engine, [request(prompt) for prompt in PROMPTS])
    for prompt, ids in zip(PROMPTS, found, strict=True):
        expected = reference.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=None, pad_token_id=0
        )
        assert ids == expected[0, len(prompt) :].tolist()


def test_a_seed_gives_the_same_tokens_alone_and_in_company(engine) -> None:
    asked = request(PROMPTS[0], temperature=1.0, top_p=0.95, seed=11)
    alone = run_all(engine, [asked])[0]
    others = [request(prompt, temperature=0.7, seed=number) for number, prompt in enumerate(PROMPTS * 5)]
    assert run_all(engine, [*others, asked, asked])[-2:] == [alone, alone]
    assert run_all(engine, [request(PROMPTS[0], temperature=1.0, top_p=0.95, seed=12)])[0] != alone


def test_a_tiny_top_p_or_temperature_is_greedy(engine) -> None:
    greedy = run_all(engine, [request(PROMPTS[1])])[0]
    assert run_all(engine, [request(PROMPTS[1], temperature=1.0, top_p=1e-6, seed=3)])[0] == greedy
    assert run_all(engine, [request(PROMPTS[1], temperature=1e-4, seed=3)])[0] == greedy


def test_it_stops_after_an_end_token(engine) -> None:
    ids = run_all(engine, [request(PROMPTS[1])])[0]
    end = ids[5]
    assert run_all(engine, [request(PROMPTS[1], end_ids=(end,))])[0] == ids[: ids.index(end) + 1]


def test_the_longest_sequence_fits_where_memory_is_scarce(directory: Path) -> None:
    page = 32 * 2 * 2 * 16 * 4 * 2  # tokens, key and value, heads, width, bytes, layers
    engine = start(directory, kv_cache_bytes=5 * page)
    try:
        longest = request(PROMPTS[0], max_tokens=128 - len(PROMPTS[0]))
        # Three of them do not fit together: they are evicted and resumed, and lose nothing by it.
        drawn = request(PROMPTS[0], max_tokens=128 - len(PROMPTS[0]), temperature=1.0, seed=5)
        alone = run_all(engine, [longest])[0], run_all(engine, [drawn])[0]
        assert len(alone[0]) == 128 - len(PROMPTS[0])
        assert run_all(engine, [longest, drawn, drawn]) == [alone[0], alone[1], alone[1]]
    finally:
        engine.close()
    with pytest.raises(DeploymentError, match="kv_cache_gb"):
        start(directory, kv_cache_bytes=3 * page)


def test_closing_the_stream_cancels(engine) -> None:
    async def leave_early() -> None:
        async with aclosing(engine.generate(request(PROMPTS[0], max_tokens=100))) as stream:
            await anext(stream)
        for _ in range(100):
            scheduler = engine._manager.batch_processor.scheduler
            if not scheduler.active_requests and not engine._manager.output_router.result_handlers:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the request goes on")

    asyncio.run(leave_early())


def test_a_dead_engine_fails_its_requests_and_its_check(directory: Path) -> None:
    engine = start(directory)

    def die(**_: object) -> None:
        raise RuntimeError("out of memory")

    async def ask() -> None:
        stream = engine.generate(request(PROMPTS[0], max_tokens=100))
        await anext(stream)
        engine._manager.model.forward = die
        async for _ in stream:
            pass

    engine.check()
    with pytest.raises(DeploymentError, match="out of memory"):
        asyncio.run(ask())
    with pytest.raises(DeploymentError, match="stopped"):
        engine.check()
    with pytest.raises(DeploymentError, match="stopped"):
        run_all(engine, [request(PROMPTS[0])])


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
