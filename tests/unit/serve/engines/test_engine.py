"""All engines: the answer to a request depends on that request alone."""

import asyncio
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maas_ray.errors import DeploymentError, SpecError
from maas_ray.serve.engines import Engine, openvino
from maas_ray.serve.engines.openvino import OpenVinoEngine
from maas_ray.serve.engines.openvino_convert import Converted, converted
from maas_ray.serve.engines.start import Started, start
from maas_ray.serve.spec import ServingOptions
from maas_ray.serve.text.json_schema import check
from maas_ray.serve.text.types import GenerateRequest, SamplingParams
from tests.support.bundles import TEXT, save_bundle, text_task
from tests.support.errors import raises
from tests.support.openvino import convert

TASK = text_task()
PROMPTS = [TASK.tokenizer.encode(text).ids for text in TEXT]
TOKEN_BYTES = 2 * 2 * 16 * 4 * 2  # key and value, heads, width, bytes, layers
PAGE_BYTES = 32 * TOKEN_BYTES
DIGEST = "d" * 64

Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(TASK, tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="module")
def model(directory: Path, cache: Path) -> Converted:
    return convert(directory, DIGEST, cache)


@pytest.fixture(scope="module", params=["openvino", "transformers"])
def make(request: pytest.FixtureRequest, directory: Path) -> Iterator[Make]:
    """Starts an engine of each kind; all are closed in the end."""
    started: list[Engine] = []

    def make(**changes: Any) -> Engine:
        options = {"context": 128, "max_requests": 8, "kv_cache_bytes": 10**9, "prefill_tokens": 64} | changes
        if request.param == "openvino":
            model = replace(request.getfixturevalue("model"), context=options.pop("context"))
            started.append(OpenVinoEngine(model, threads=1, **options))
        else:
            from maas_ray.serve.engines.transformers import TransformersEngine, quiet

            quiet()
            started.append(TransformersEngine(TASK.load_model(directory), **options))
        return started[-1]

    yield make
    for engine in started:
        engine.close()


@pytest.fixture(scope="module")
def engine(make: Make) -> Engine:
    return make()


@pytest.fixture(scope="module")
def cramped(make: Make) -> Engine:
    """An engine that must evict some of a few long sequences."""
    return make(kv_cache_bytes=5 * PAGE_BYTES)


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


# --- the Transformers engine


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


# --- OpenVINO's engine


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


def test_a_model_that_does_not_load_is_an_error(model: Converted, tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text("not a model")
    with raises(DeploymentError, "model_load_failed", "RuntimeError"):
        OpenVinoEngine(
            replace(model, directory=tmp_path), threads=1, max_requests=1, kv_cache_bytes=10**9, prefill_tokens=64
        )


def test_openvino_s_process_ends_with_the_replica(model: Converted) -> None:
    code = f"""
import os
from maas_ray.serve.engines import openvino
from maas_ray.serve.engines.openvino import OpenVinoEngine
from maas_ray.serve.engines.openvino_convert import Converted
from pathlib import Path
model = Converted.load(Path({str(model.directory)!r}))
engine = OpenVinoEngine(model, threads=1, max_requests=1, kv_cache_bytes=10**9, prefill_tokens=64)
openvino.prepare()
print(engine._process.pid, *(process.pid for process, _ in openvino._spare), flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -9
    working, prepared = map(int, done.stdout.split())
    await_end(working)
    await_end(prepared)


@pytest.mark.parametrize("make", ["openvino"], indirect=True)
def test_a_prepared_process_is_used_if_it_is_alive(make: Make) -> None:
    answers = []
    for kill in (False, True):
        openvino.prepare()
        openvino.prepare()  # one is enough
        (process, _), *more = openvino._spare
        assert not more
        if kill:
            process.kill()
            process.wait()
        engine = make()
        assert (engine._process is process) is not kill
        assert not openvino._spare
        answers.append(run_all(engine, [request(PROMPTS[0])])[0])
    assert answers[0] == answers[1]


def await_end(pid: int) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)


def test_the_serving_path_imports_neither_torch_nor_transformers(directory: Path, model: Converted) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from maas_ray.serve.engines.start import start, warm_up
from maas_ray.serve.model_app import Generator, TextCodec
from maas_ray.serve.spec import ServingOptions
from maas_ray.tasks import load_task
directory = Path({str(directory)!r})
task = load_task(directory)
found = start(task, directory, {DIGEST!r}, ServingOptions(), cache=Path({str(model.directory.parent)!r}))
TextCodec(task, found.context, found.end_ids)
asyncio.run(warm_up(found.engine, 0))
found.engine.close()
print(found.name, [name for name in ("torch", "transformers", "openvino") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "openvino []", done.stderr


KEPT_SCHEMAS = {
    "object": {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "e": {"enum": ["x", None]}},
        "required": ["n", "e"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    "string": {"type": "string"},
    "date": {"type": "string", "format": "date"},
    "either": {"anyOf": [{"type": "null"}, {"const": {"a": [1, "é"]}}]},
    "itself": {
        "$ref": "#/$defs/list",
        "$defs": {"list": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}]}},
    },
    "anything": {"type": "object", "properties": {}},
    "types": {"type": ["integer", "null"]},
}
SPACE = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 100}


@pytest.mark.parametrize("make", ["openvino"], indirect=True)
def test_answers_follow_a_json_schema(engine: Engine) -> None:
    assert "json_schema" in engine.supports
    end = TASK.end_of_text_id
    # A model of random weights likes white space between a document's parts, and not to end: some draws are cut off.
    whole: dict[str, list[Any]] = {name: [] for name in KEPT_SCHEMAS}
    asked = [
        (name, request(PROMPTS[0], end_ids=(end,), json_schema=check(schema), seed=seed, **SPACE))
        for name, schema in KEPT_SCHEMAS.items()
        for seed in range(12)
    ]
    plain = request(PROMPTS[1])
    *found, beside = run_all(engine, [*(one for _, one in asked), plain])
    assert beside == run_all(engine, [plain])[0]  # a neighbour's schema is none of its business
    for (name, _), ids in zip(asked, found, strict=True):
        if ids[-1] == end:
            whole[name].append(json.loads(TASK.tokenizer.decode(ids[:-1])))
    assert all(
        set(one) == {"n", "e"} and isinstance(one["n"], int) and one["e"] in ("x", None) for one in whole["object"]
    )
    assert all(len(one) in (2, 3) and {type(item) for item in one} == {bool} for one in whole["array"])
    assert all(isinstance(one, str) for one in whole["string"])
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", one) for one in whole["date"])
    assert all(one in (None, {"a": [1, "é"]}) for one in whole["either"])
    assert all(one is None or isinstance(one, int) for one in whole["types"])
    assert all(isinstance(one, dict) for one in whole["anything"])
    assert all(whole[name] for name in set(whole) - {"anything"}), whole


# --- conversion


def convert_apart(directory: Path, cache: Path) -> "subprocess.Popen[str]":
    code = f"""
from pathlib import Path
from maas_ray.serve.engines.openvino_convert import converted
print(converted(Path({str(directory)!r}), {DIGEST!r}, "int8", cache=Path({str(cache)!r}), threads=1).directory)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_killed_conversion_is_repeated_and_concurrent_ones_convert_once(
    directory: Path, model: Converted, tmp_path: Path
) -> None:
    first = convert_apart(directory, tmp_path)
    deadline = time.monotonic() + 60
    while not (begun := list(tmp_path.glob(".*.partial"))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.communicate()
    (begun[0] / "openvino_model.xml").write_text("a part")
    assert not list(tmp_path.glob(f"{DIGEST}*"))

    both = [convert_apart(directory, tmp_path) for _ in range(2)]
    places = {process.communicate(timeout=120)[0].strip() for process in both}
    [whole] = tmp_path.glob(f"{DIGEST}*")
    assert places == {str(whole)}
    assert not list(tmp_path.glob(".*.partial"))
    made = (whole / "openvino_model.xml").stat()
    assert made.st_size > 1000
    plain, compressed = (path / "openvino_model.bin" for path in (model.directory, whole))
    assert compressed.stat().st_size < plain.stat().st_size / 2
    converted(directory, DIGEST, "int8", cache=tmp_path, threads=1)
    assert (whole / "openvino_model.xml").stat().st_mtime_ns == made.st_mtime_ns


def options(**fields: Any) -> ServingOptions:
    return ServingOptions.parse(fields)


def answers(started: Started) -> list[int]:
    try:
        return run_all(started.engine, [request(PROMPTS[0])])[0]
    finally:
        started.engine.close()


@pytest.mark.parametrize("compression", ["int8", "int4"])
def test_compressed_weights_load_and_answer(directory: Path, cache: Path, model: Converted, compression: str) -> None:
    convert(directory, DIGEST, cache, compression)
    started = start(TASK, directory, DIGEST, options(compression=compression), cache=cache)
    assert started.name == f"openvino {compression}"
    assert len(answers(started)) == 24
    weights = [
        (cache / name / "openvino_model.bin").stat().st_size
        for name in (model.directory.name, next(cache.glob(f"{DIGEST}-{compression}-*")).name)
    ]
    assert weights[1] < weights[0] / 2


def test_a_model_that_cannot_be_converted_is_served_by_transformers(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save_bundle(TASK, tmp_path / "bundle")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "ministral"}))
    started = start(TASK, other, DIGEST, options(), cache=tmp_path)
    assert started.name.startswith("transformers (")
    assert "ministral" in started.name
    assert "ministral" in caplog.text
    assert len(answers(started)) == 24
    for asked in ({"engine": "openvino"}, {"compression": "int8"}):
        with raises(DeploymentError, "engine_unavailable", "ministral"):
            start(TASK, other, DIGEST, options(**asked), cache=tmp_path)
    assert start_name(directory, tmp_path, engine="transformers") == "transformers"


def start_name(directory: Path, cache: Path, **fields: Any) -> str:
    started = start(TASK, directory, DIGEST, options(**fields), cache=cache)
    started.engine.close()
    return started.name


def test_a_failed_conversion_is_an_error(directory: Path, tmp_path: Path) -> None:
    other = save_bundle(TASK, tmp_path / "bundle")
    (other / "model.safetensors").write_bytes(b"nothing")
    with raises(DeploymentError, "conversion_failed", "afetensor"):
        converted(other, DIGEST, "none", cache=tmp_path, threads=1)


def test_options_that_contradict_each_other_are_refused() -> None:
    for code, fields in (
        ("engine_needs_cpu", {"engine": "openvino", "resources": {"gpus": 1}}),
        ("compression_needs_openvino", {"compression": "int8", "resources": {"gpus": 1}}),
        ("compression_needs_openvino", {"compression": "int8", "engine": "transformers"}),
    ):
        with raises(SpecError, code, "CPU"):
            options(**fields)
