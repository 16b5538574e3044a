"""vLLM through `ray.serve.llm`: what it is told and given, checked without a GPU, and without vLLM where it is not."""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maas_ray.errors import DeploymentError, RequestRefusedError, SpecError
from maas_ray.serve.engines.vllm import (
    VllmEngine,
    chosen,
    config_fields,
    end_ids,
    installed,
    llm_config,
    placement,
)
from maas_ray.serve.spec import DeploySpec, ServingOptions
from tests.support.engines import request, run
from tests.support.errors import raises

BUNDLE = Path("/nodes/bundles/abc")


def options(gpus: float = 1, **fields: Any) -> ServingOptions:
    return ServingOptions.parse({"engine": "vllm", "resources": {"gpus": gpus, "cpus": 3}, **fields})


def test_ray_s_own_config_accepts_the_vllm_options() -> None:
    # The base of `ray.serve.llm.LLMConfig`, whose module cannot be imported without vLLM.
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

    asked = options(
        4, max_ongoing_requests=7, vllm={"max_model_len": 4096, "dtype": "bfloat16", "pipeline_parallel_size": 2}
    )
    config = LLMConfig(**config_fields(BUNDLE, "lm", asked, "gpu"))
    assert config.engine_kwargs == {
        "max_model_len": 4096,
        "dtype": "bfloat16",
        "pipeline_parallel_size": 2,
        "tensor_parallel_size": 2,
        "max_num_seqs": 7,
        "load_format": "safetensors",
        "trust_remote_code": False,
    }
    assert config.model_loading_config.model_id == "lm"
    assert config.model_loading_config.model_source == str(BUNDLE)
    assert config.accelerator_config.kind == "gpu"
    assert config.lora_config is None  # adapters are asked for request by request, from bundles


def test_adapters_are_left_to_vllm_when_enabled() -> None:
    asked = options(max_adapters=3, vllm={"enable_lora": True, "max_lora_rank": 32})
    told = config_fields(BUNDLE, "lm", asked, "gpu")["engine_kwargs"]
    assert (told["enable_lora"], told["max_lora_rank"], told["max_loras"]) == (True, 32, 3)
    with raises(SpecError, "adapters_need_enable_lora", "vllm.enable_lora"):
        DeploySpec.parse({"version": "lm/1", "engine": "vllm", "resources": {"gpus": 1}, "adapters": {"fr": "fr/1"}})


def test_a_vllm_replica_has_a_placement_bundle_for_each_gpu() -> None:
    given = placement(options(2), "generate")
    assert given == {
        "ray_actor_options": {"num_cpus": 3, "num_gpus": 0},  # the GPUs are the workers'
        "placement_group_bundles": [{"GPU": 1, "CPU": 3}, {"GPU": 1}],
        "placement_group_strategy": "STRICT_PACK",
    }
    from ray import serve

    serve.deployment(name="Model", **given)(type("Replica", (), {}))  # Serve takes them
    alone = {"ray_actor_options": {"num_cpus": 3, "num_gpus": 2}}
    assert placement(options(2), "predict") == alone
    assert placement(options(2, engine="transformers"), "generate") == alone


def test_a_replica_reserves_the_memory_that_it_is_given() -> None:
    from ray import serve

    resources = {"cpus": 3, "gpus": 2, "memory_gb": 1.5}
    given = placement(options(2, resources=resources), "generate")
    assert given["ray_actor_options"] == {"num_cpus": 3, "num_gpus": 0, "memory": 1.5e9}
    assert given["placement_group_bundles"] == [{"GPU": 1, "CPU": 3, "memory": 1.5e9}, {"GPU": 1}]
    serve.deployment(name="Model", **given)(type("Replica", (), {}))  # Serve takes them
    alone = placement(ServingOptions.parse({"resources": resources}), "predict")
    assert alone == {"ray_actor_options": {"num_cpus": 3, "num_gpus": 2, "memory": 1.5e9}}
    serve.deployment(name="Model", **alone)(type("Replica", (), {}))


def test_a_replica_runs_on_the_nodes_that_are_named() -> None:
    """The type is a resource of Ray's nodes: `accelerator_type:H100`, of which 0.001 is asked."""
    from ray import serve
    from ray._common.utils import resources_from_ray_options

    resources = {"gpus": 2, "accelerator_type": "H100", "labels": {"ray.io/market-type": "!in(spot, other)"}}
    given = placement(options(2, resources=resources), "generate")
    assert given["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}
    typed = {"GPU": 1, "accelerator_type:H100": 0.001}
    assert given["placement_group_bundles"] == [typed | {"CPU": 1}, typed]
    assert given["placement_group_bundle_label_selector"] == [resources["labels"]] * 2
    serve.deployment(name="Model", **given)(type("Replica", (), {}))  # Serve takes them
    alone = placement(ServingOptions.parse({"resources": resources}), "predict")
    assert alone["ray_actor_options"]["label_selector"] == resources["labels"]
    assert resources_from_ray_options(alone["ray_actor_options"])["accelerator_type:H100"] == 0.001
    serve.deployment(name="Model", **alone)(type("Replica", (), {}))
    with raises(SpecError, "invalid_label", "-spot"):
        ServingOptions.parse({"resources": {"labels": {"market": "-spot"}}})


@pytest.mark.parametrize(
    ("fields", "code", "value"),
    [
        ({"resources": {"gpus": 0}}, "engine_needs_gpu", "not 0"),
        ({"resources": {"gpus": 0.5}}, "engine_needs_gpu", "not 0.5"),
        ({"vllm": {"trust_remote_code": True}}, "vllm_option_reserved", "vllm.trust_remote_code"),
        ({"vllm": {"load_format": "pt"}}, "vllm_option_reserved", "safetensors"),
        ({"vllm": {"model": "x/y"}}, "vllm_option_reserved", "the version's bundle"),
        ({"vllm": {"max_num_seqs": 3}}, "vllm_option_reserved", "max_ongoing_requests"),
        ({"vllm": {"tensor_parallel_size": 2}}, "vllm_parallel_size", "resources.gpus is 1"),
        ({"vllm": {"tensor_parallel_size": "2"}}, "vllm_parallel_size", "whole numbers"),
        ({"vllm": {"pipeline_parallel_size": 2}}, "vllm_parallel_size", "resources.gpus is 1"),
        ({"engine": "transformers", "vllm": {"dtype": "half"}}, "vllm_options_unused", "engine vllm"),
        ({"engine": "auto", "resources": {"gpus": 0}, "vllm": {"dtype": "half"}}, "vllm_options_unused", "engine vllm"),
    ],
)
def test_options_that_vllm_cannot_have_are_refused(fields: dict[str, Any], code: str, value: str) -> None:
    with raises(SpecError, code, value):
        options(**({"gpus": fields.pop("resources")["gpus"]} if "resources" in fields else {}), **fields)


def test_auto_is_vllm_for_text_on_gpus_where_it_is_installed() -> None:
    on_gpu = options(engine="auto")
    assert chosen(on_gpu, "text-generation").engine == ("vllm" if installed() else "auto")
    assert chosen(on_gpu, "image-classification") == on_gpu
    assert chosen(options(0, engine="auto"), "text-generation").engine == "auto"
    assert chosen(options(0.5, engine="auto"), "text-generation").engine == "auto"
    assert chosen(options(engine="transformers"), "text-generation").engine == "transformers"


@pytest.mark.skipif(installed(), reason="vLLM is installed")
def test_without_vllm_the_error_names_the_package() -> None:
    with raises(DeploymentError, "engine_unavailable", "pip install 'maas-ray[vllm]'"):
        llm_config(BUNDLE, "lm", options())


@pytest.mark.skipif(not installed(), reason="vLLM is not installed")
def test_vllm_validates_its_own_arguments() -> None:
    engine = llm_config(BUNDLE, "lm", options(2, vllm={"max_model_len": 64})).get_engine_config()
    assert engine.placement_bundles == [{"GPU": 1}, {"GPU": 1}]
    assert engine.placement_strategy == "STRICT_PACK"
    told = engine.get_initialization_kwargs()
    assert (told["model"], told["max_model_len"], told["distributed_executor_backend"]) == (str(BUNDLE), 64, "ray")
    with raises(DeploymentError, "engine_arguments", "max_modle_len"):
        llm_config(BUNDLE, "lm", options(vllm={"max_modle_len": 64}))


def test_end_tokens_come_from_the_model_s_files(tmp_path: Path) -> None:
    assert end_ids(tmp_path) == ()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert end_ids(tmp_path) == (3,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5]}))
    assert end_ids(tmp_path) == (4, 5)


class Client:
    """VLLM's client, which refuses or dies, by the first token of a prompt."""

    def __init__(self) -> None:
        self.errored, self.dead_error = False, RuntimeError("EngineCore died")

    async def generate(self, prompt: Any, sampling: Any, name: str, lora_request: Any) -> AsyncGenerator[Any, None]:
        first = prompt["prompt_token_ids"][0]
        if first == 1:
            raise ValueError("the prompt is too odd\nsecond line")
        for _ in range(sampling.max_tokens):
            await asyncio.sleep(0.01)
            if first == 2:
                raise RuntimeError("only this one")
            self.errored |= first == 3
            if self.errored:
                raise self.dead_error
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[first])])


def test_a_request_that_vllm_refuses_or_fails_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def sampling_params(**fields: Any) -> Any:
        if fields["max_tokens"] > 100:
            raise ValueError("max_tokens is too large.")
        return SimpleNamespace(**fields)

    for name, attributes in {
        "vllm": {"SamplingParams": sampling_params},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(DELTA=1)},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**attributes))
    engine = VllmEngine.__new__(VllmEngine)
    engine._client, engine._numbers = Client(), itertools.count(1)

    async def ask() -> None:
        other = asyncio.create_task(run(engine, request([7], max_tokens=10)))
        with raises(RequestRefusedError, "refused_by_engine", "too odd"):
            await run(engine, request([1]))
        with raises(RequestRefusedError, "refused_by_engine", "too large"):
            await run(engine, request([7], max_tokens=101))
        with raises(DeploymentError, "engine_failed", "only this one"):
            await run(engine, request([2]))
        assert await other == [7] * 10
        engine.check()
        with raises(DeploymentError, "engine_failed", "EngineCore died"):
            await run(engine, request([3]))
        with raises(DeploymentError, "engine_stopped", "EngineCore died"):  # so Serve replaces the replica
            engine.check()

    asyncio.run(ask())
