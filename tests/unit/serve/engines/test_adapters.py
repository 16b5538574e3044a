"""LoRA adapters: what one says is what PEFT's merged model says, and the base goes on as if there were none."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maas_ray.errors import DeploymentError, OverloadedError, SpecError
from maas_ray.serve.engines.adapters import AdapterEngine
from maas_ray.serve.engines.lora import Lora, check
from maas_ray.serve.engines.start import Started, start
from maas_ray.serve.resolve import make_route, resolve_route
from maas_ray.serve.spec import DeploySpec, ServedModel, ServingOptions
from maas_ray.serve.text.types import Adapter, GenerateRequest, Tokens
from maas_ray.settings import Settings
from tests.support.adapters import publish_adapter, register_adapter, save_adapter
from tests.support.bundles import register, save_bundle, text_task
from tests.support.engines import DIGEST, PROMPTS, greedy, request, run, run_all
from tests.support.errors import raises
from tests.support.openvino import convert

TASK = text_task()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(TASK, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A platform for all tests of the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAAS_HOME", str(tmp_path_factory.mktemp("home")))
        yield Settings.from_environment()


@pytest.fixture(scope="module", params=["openvino", "transformers"])
def started(request: pytest.FixtureRequest, base: Path, places: Settings) -> Iterator[Started]:
    options = ServingOptions.parse({"engine": request.param, "max_adapters": 2})
    cache = Path(places.home) / "openvino"
    if request.param == "openvino":
        convert(base, DIGEST, cache)
    started = start(TASK, base, DIGEST, options, cache=cache)
    assert started.name == request.param
    yield started
    started.engine.close()


def publish(settings: Settings, base: Path, name: str, tmp_path: Path, **changes: Any) -> tuple[Adapter, Any]:
    """An adapter's bundle, and the base with it merged in."""
    merged = save_adapter(base, tmp_path / name, **changes)
    bundle = publish_adapter(settings, name, tmp_path / name)
    return Adapter(bundle.uri, bundle.digest), merged


# --- what is computed


def test_adapted_answers_equal_peft_s_and_the_base_is_unchanged(
    started: Started, base: Path, places: Settings, tmp_path: Path
) -> None:
    """Three of them where two are kept, all at once, with the base among them."""
    alone = [request(prompt) for prompt in PROMPTS]
    before = run_all(started.engine, alone)
    assert before == [greedy(TASK.load_model(base), prompt, 24) for prompt in PROMPTS]
    asked, expected = list(alone), list(before)
    for seed in range(1, 4):
        adapter, merged = publish(places, base, f"adapter-{seed}", tmp_path, seed=seed)
        asked += [replace(one, adapter=adapter) for one in alone]
        expected += [greedy(merged, prompt, 24) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) > 10  # they do say different things

    async def twice() -> None:
        for turned in (1, -1):
            found = await asyncio.gather(*(run(started.engine, one) for one in asked[::turned]))
            assert found == expected[::turned]

    asyncio.run(twice())


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True, "lora_alpha": 3},
        {"r": 3, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"layers.1.mlp.up_proj": 40, "v_proj": 1}},
        {"target_modules": ["q_proj", "down_proj"], "lora_alpha": 16},
    ],
)
def test_ranks_and_scales_are_peft_s(base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    merged = save_adapter(base, tmp_path / "adapter", **config)
    network = TASK.load_model(base)
    lora = Lora.load(tmp_path / "adapter")
    lora.merge(network, tmp_path / "adapter")
    changed = {f"{module}.weight" for module in lora.changes}
    original = TASK.load_model(base).state_dict()
    for name, weight in merged.state_dict().items():
        assert (network.state_dict()[name] - weight).abs().max() < 1e-5, name
        assert (name in changed) == (not weight.equal(original[name])), name


# --- what is kept


class Counting:
    """An engine that says its own number so often, and knows whether it was closed."""

    supports: frozenset[str] = frozenset()

    def __init__(self, number: int) -> None:
        self.number, self.closed, self.dead = number, False, False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        for _ in range(request.max_tokens):
            assert not self.closed
            self.check()
            yield Tokens([self.number])
            await asyncio.sleep(0.01)

    def check(self) -> None:
        if self.dead:
            raise DeploymentError("it has died")

    def close(self) -> None:
        self.closed = True


class Pool:
    """An `AdapterEngine` over such engines, and all that it brought up."""

    def __init__(self, keep: int, seconds: float = 0.0, patience_s: float = 5.0) -> None:
        self.made: list[Counting] = []
        self.fails, self.seconds, self.base = False, seconds, Counting(0)
        self.engine = AdapterEngine(self.base, self._load, keep, patience_s)

    def _load(self, adapter: Adapter) -> Counting:
        assert sum(not engine.closed for engine in self.made) < 2
        time.sleep(self.seconds)
        if self.fails:
            raise DeploymentError("it does not load")
        self.made.append(Counting(int(adapter.digest)))
        return self.made[-1]

    async def ask(self, number: int, tokens: int = 2) -> list[int]:
        adapter = Adapter("somewhere", str(number)) if number else None
        return await run(self.engine, request([1], max_tokens=tokens, adapter=adapter))

    @property
    def loaded(self) -> list[int]:
        return [engine.number for engine in self.made]


def test_the_least_recently_used_adapter_is_evicted() -> None:
    pool = Pool(2)

    async def ask() -> None:
        for number in (1, 2, 1, 3, 1, 2):
            assert await pool.ask(number) == [number] * 2

    asyncio.run(ask())
    assert pool.loaded == [1, 2, 3, 2]
    assert [engine.closed for engine in pool.made] == [False, True, True, False]
    pool.engine.close()
    assert all(engine.closed for engine in [*pool.made, pool.base])


def test_an_adapter_is_loaded_once_and_not_evicted_while_it_answers() -> None:
    pool = Pool(1, seconds=0.05)

    async def ask() -> None:
        answers = await asyncio.gather(
            *(pool.ask(number, tokens) for number, tokens in [(1, 30), (1, 3), (2, 3), (1, 3)])
        )
        assert answers == [[1] * 30, [1] * 3, [2] * 3, [1] * 3]

    asyncio.run(ask())
    assert pool.loaded == [1, 2]  # the last asks after 2, and needs not wait for it


def test_a_loaded_adapter_does_not_wait_for_one_too_many() -> None:
    pool = Pool(1, patience_s=0.3)

    async def ask() -> None:
        long = asyncio.create_task(pool.ask(1, 100))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        waiting = [asyncio.create_task(pool.ask(number)) for number in (2, 3)]
        await asyncio.sleep(0.05)
        assert await pool.ask(1) == [1, 1]
        assert time.monotonic() - began < 0.25
        for one in waiting:
            with raises(OverloadedError, "rate_limit_exceeded", "max_adapters"):
                await one
        assert time.monotonic() - began < 0.9  # the long answer takes a second
        assert await long == [1] * 100
        assert await pool.ask(2) == [2, 2]  # nobody is in the way any more

    asyncio.run(ask())


def test_the_base_answers_while_an_adapter_loads() -> None:
    pool = Pool(1, seconds=0.5)

    async def ask() -> float:
        slow = asyncio.create_task(pool.ask(1))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        assert await pool.ask(0) == [0, 0]
        took = time.monotonic() - began
        assert await slow == [1, 1]
        return took

    assert asyncio.run(ask()) < 0.3


def test_a_cancelled_request_does_not_cancel_a_shared_load() -> None:
    pool = Pool(1, seconds=0.2)

    async def ask() -> None:
        left, stays = (asyncio.create_task(pool.ask(1)) for _ in range(2))
        await asyncio.sleep(0.05)
        left.cancel()
        assert await stays == [1, 1]
        async with aclosing(pool.engine.generate(request([1], adapter=Adapter("", "1")))) as tokens:
            assert (await anext(tokens)).ids == [1]
        assert await pool.ask(2) == [2, 2]

    asyncio.run(ask())
    assert pool.loaded == [1, 2]


def test_a_failed_adapter_is_loaded_again_and_does_not_fail_the_base() -> None:
    pool = Pool(1)

    async def ask() -> None:
        pool.fails = True
        with pytest.raises(DeploymentError, match="does not load"):
            await pool.ask(1)
        pool.fails = False
        assert await pool.ask(1) == [1, 1]
        answer = asyncio.create_task(pool.ask(1, 100))
        await asyncio.sleep(0.05)
        pool.made[0].dead = True
        with pytest.raises(DeploymentError, match="has died"):
            await answer
        assert await pool.ask(1) == [1, 1]
        pool.made[1].dead = True  # while nobody asks
        assert await pool.ask(1) == [1, 1]
        pool.engine.check()

    asyncio.run(ask())
    assert pool.loaded == [1, 1, 1]
    pool.engine.close()
    assert all(engine.closed for engine in pool.made)


# --- what is refused


def changed(directory: Path, **fields: Any) -> Path:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return directory


@pytest.mark.parametrize(
    ("fields", "code", "why"),
    [
        ({"peft_type": "LOHA"}, "adapter_kind", "LOHA"),
        ({"use_dora": True}, "adapter_option", "use_dora"),
        ({"bias": "all"}, "adapter_option", "bias: 'all'"),
        ({"modules_to_save": ["lm_head"]}, "adapter_option", "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "adapter_changes_base", "pissa"),
        ({"of_tomorrow": {"x": 1}}, "adapter_option", "of_tomorrow"),
    ],
)
def test_an_adapter_that_changes_more_is_refused(
    base: Path, tmp_path: Path, fields: dict[str, Any], code: str, why: str
) -> None:
    save_adapter(base, tmp_path / "adapter")
    with raises(DeploymentError, code, why):
        Lora.load(changed(tmp_path / "adapter", **fields))


def test_an_adapter_that_does_not_fit_is_not_deployed(settings: Settings, base: Path, tmp_path: Path) -> None:
    version = register(settings, "lm", TASK, tmp_path / "lm")
    save_adapter(base, tmp_path / "good")
    good = register_adapter(settings, "good", tmp_path / "good", parent="lm/1")
    check(good, version)
    route = make_route(version, endpoint="lm", application="model-lm", timeout_s=1, adapters={"fr": good})
    plain, adapted = route.expanded()
    assert plain == route
    assert (adapted.name, adapted.parent, adapted.version, adapted.number) == ("lm:fr", "lm", "good/1", "1")
    assert adapted.digest != route.digest

    model = ServedModel(endpoint="lm", version="lm/1", application="model-lm", adapters={"fr": "good@champion"})
    assert resolve_route(model, settings).adapters == route.adapters  # as a Serve config file names it

    other = register(settings, "other", TASK, tmp_path / "other", seed=1)
    with raises(DeploymentError, "adapter_of_another_model", "good/1", "lm/1", "other/1"):
        check(good, other)
    save_adapter(base, tmp_path / "odd", target_modules=["q_proj"])
    odd = register_adapter(settings, "odd", shrink(tmp_path / "odd"))
    with raises(DeploymentError, "adapter_does_not_fit", "q_proj.weight of shape [32, 16]", "lm/1"):
        check(odd, version)
    with raises(DeploymentError, "not_an_adapter", "lm/1"):
        check(version, version)
    with raises(DeploymentError, "adapter_without_base", "good/1"):
        make_route(good, endpoint="x", application="x", timeout_s=1)
    with raises(SpecError, "adapters_with_compression", "compression", "int8"):
        DeploySpec.parse({"version": "lm/1", "adapters": {"fr": "good/1"}, "compression": "int8"})
    with raises(SpecError, "string_pattern_mismatch", "adapters", "a:b"):
        DeploySpec.parse({"version": "lm/1", "adapters": {"a:b": "good/1"}})


def shrink(directory: Path) -> Path:
    """The adapter with every A cut to half its width, as of a narrower base."""
    from safetensors.torch import load_file, save_file

    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t[:, :16].contiguous() if "lora_A" in n else t for n, t in tensors.items()}, path)
    return directory


def test_compressed_weights_refuse_adapters(base: Path, places: Settings, tmp_path: Path) -> None:
    """A Serve config file can name both."""
    adapter, _ = publish(places, base, "adapter", tmp_path)
    cache = Path(places.home) / "openvino"
    for compression in ("none", "int8"):
        convert(base, DIGEST, cache, compression)
    started = start(TASK, base, DIGEST, ServingOptions(compression="int8"), cache=cache)
    try:
        with raises(DeploymentError, "adapter_on_compressed_model", "compression: int8"):
            run_all(started.engine, [request(PROMPTS[0], adapter=adapter)])
        with raises(DeploymentError, "digest_mismatch", adapter.uri, "e" * 64):
            start_plain(base, places, replace(adapter, digest="e" * 64))
    finally:
        started.engine.close()


def start_plain(base: Path, places: Settings, adapter: Adapter) -> None:
    started = start(TASK, base, DIGEST, ServingOptions(), cache=Path(places.home) / "openvino")
    try:
        run_all(started.engine, [request(PROMPTS[0], adapter=adapter)])
    finally:
        started.engine.close()


@pytest.mark.parametrize("method", ["infer", "predict"])
def test_infer_and_predict_refuse_adapters(method: str) -> None:
    from maas_ray.errors import RequestError
    from maas_ray.serve.caller import ANONYMOUS
    from maas_ray.serve.calls import Models
    from maas_ray.serve.routes import AdapterRoute
    from tests.support.models import route

    french = AdapterRoute(name="french", version="fr/1", uri="somewhere", digest="ab", created=0)
    models = Models()
    models._routes = {one.name: one for one in route("lm", "generate", adapters=[french.model_dump()]).expanded()}
    with raises(RequestError, "model_not_supported", "'lm:french'"):
        asyncio.run(getattr(models, method)(models.route("lm:french", caller=ANONYMOUS), b"", caller=ANONYMOUS))
