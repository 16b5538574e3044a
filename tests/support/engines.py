"""Requests to engines that generate text, all at once, and the tokens that Transformers generates."""

import asyncio
import dataclasses
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from maas_ray.serve.engines import Engine
from maas_ray.serve.text.types import GenerateRequest, SamplingParams
from tests.support.bundles import TEXT, text_task

TASK = text_task()
PROMPTS = [TASK.tokenizer.encode(text).ids for text in TEXT]
TOKEN_BYTES = 2 * 2 * 16 * 4 * 2  # key and value, heads, width, bytes, layers
PAGE_BYTES = 32 * TOKEN_BYTES
DIGEST = "d" * 64

Make = Callable[..., Engine]


def request(prompt: list[int], **changes) -> GenerateRequest:
    """Greedy unless told otherwise; `changes` are fields of a `GenerateRequest` or of its `SamplingParams`."""
    sampling = {one.name: changes.pop(one.name) for one in dataclasses.fields(SamplingParams) if one.name in changes}
    chosen = SamplingParams(**({"temperature": 0.0} | sampling))
    return GenerateRequest(prompt, sampling=chosen, **({"max_tokens": 24, "seed": 0, "end_ids": ()} | changes))


async def run(engine: Engine, asked: GenerateRequest) -> list[int]:
    ids = []
    async with aclosing(engine.generate(asked)) as stream:
        async for some in stream:
            ids += some.ids
    return ids


def run_all(engine: Engine, requests: list[GenerateRequest]) -> list[list[int]]:
    async def together() -> list[list[int]]:
        return await asyncio.gather(*(run(engine, asked) for asked in requests))

    return asyncio.run(together())


def greedy(network: Any, prompt: list[int], tokens: int) -> list[int]:
    """The tokens of Transformers' own `generate`."""
    import torch

    ids = network.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0
    )
    return ids[0, len(prompt) :].tolist()
