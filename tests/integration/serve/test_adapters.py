"""LoRA adapters served beside their base, for real: by name, on demand, and with the base left running."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maas_ray import DeploySpec, Registry, deploy, reconcile, rollback
from maas_ray.errors import DeploymentError
from maas_ray.serve.deployment.serve_control import applications
from maas_ray.settings import Settings
from maas_ray.views.endpoints import show_endpoints
from tests.support.adapters import register_adapter, save_adapter
from tests.support.bundles import register, text_task
from tests.support.deployments import undeploy_all
from tests.support.errors import raises
from tests.support.openvino import convert_version

TEXT = text_task()
SMALL = {"scaling": {"max_replicas": 1}, "resources": {"cpus": 0.5}, "max_adapters": 1}


@pytest.fixture(scope="module")
def said(cluster: str, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Answers of Transformers and PEFT by public name; `lm`, `fr`, `de` and `odd` are registered."""
    directory = tmp_path_factory.mktemp("bundles")
    convert_version(settings, register(settings, "lm", TEXT, directory / "lm"))
    texts = {"lm": greedy(TEXT.load_model(directory / "lm"))}
    for seed, name in enumerate(("fr", "de"), start=1):
        texts[f"lm:{name}"] = greedy(save_adapter(directory / "lm", directory / name, seed=seed))
        register_adapter(settings, name, directory / name, parent="lm/1")
    assert len(set(texts.values())) == 3
    yield texts
    undeploy_all(settings)


def greedy(network: Any) -> str:
    import torch

    prompt = TEXT.tokenizer.encode("for name in").ids
    ids = network.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0)
    return str(TEXT.tokenizer.decode(ids[0, len(prompt) :].tolist()))


def put(settings: Settings, **changes: Any):
    return deploy(DeploySpec.parse({"version": "lm@champion", **SMALL, **changes}), settings=settings)


def replicas() -> set[str]:
    """The base's replicas that run."""
    (application,) = (found for name, found in applications().items() if name.startswith("model-lm"))
    return {replica["replica_id"] for replica in application["deployments"]["Model"]["replicas"]}


def test_adapters_come_and_go_beside_their_base(
    said: dict[str, str], settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import openai

    endpoint = put(settings, adapters={"fr": "fr@champion"})
    assert endpoint.adapters == {"fr": "fr/1"}
    began = replicas()
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0) as client:

        def ask(name: str) -> str:
            answer = client.completions.create(model=name, prompt="for name in", max_tokens=12, temperature=0)
            assert answer.model == name
            return answer.choices[0].text

        def names() -> list[str]:
            return [model.id for model in client.models.list()]

        assert names() == ["lm", "lm:fr"]
        assert client.models.retrieve("lm:fr").model_dump()["parent"] == "lm"
        assert {name: ask(name) for name in ("lm", "lm:fr")} == {name: said[name] for name in ("lm", "lm:fr")}

        # Another one: the model goes on, and of the two one is loaded at a time.
        assert put(settings, adapters={"fr": "fr/1", "de": "de@champion"}).adapters == {"de": "de/1", "fr": "fr/1"}
        assert names() == ["lm", "lm:de", "lm:fr"]
        for name in ("lm:fr", "lm:de", "lm", "lm:fr"):
            assert ask(name) == said[name]
        stream = client.completions.create(
            model="lm:de", prompt="for name in", max_tokens=12, temperature=0, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == said["lm:de"]
        show_endpoints(settings)
        assert "lm:de" in capsys.readouterr().out

        # One that cannot be added is refused, and all is as it was.
        save_adapter(Path(Registry(settings).resolve("lm/1").uri), tmp_path / "dora", use_dora=True)
        register_adapter(settings, "dora", tmp_path / "dora")
        with pytest.raises(DeploymentError, match="use_dora"):
            put(settings, adapters={"dora": "dora/1"})
        # As is one that only shows when it is loaded: its smoke request fails.
        bundle = Path(Registry(settings).resolve("de/1").uri)
        register_adapter(settings, "doubles", of_doubles(bundle, tmp_path / "doubles"))
        with raises(DeploymentError, "smoke_request_failed"):
            put(settings, adapters={"fr": "fr/1", "doubles": "doubles/1"})
        assert names() == ["lm", "lm:de", "lm:fr"]
        assert ask("lm:de") == said["lm:de"]

        # Aliases move without them; going back brings what was.
        Registry(settings).set_alias(Registry(settings).resolve("de/1"), "other")
        assert put(settings).adapters == {}
        with pytest.raises(openai.NotFoundError):
            ask("lm:fr")
        assert rollback("lm", settings=settings).adapters == {"de": "de/1", "fr": "fr/1"}
        assert ask("lm:fr") == said["lm:fr"]
        assert replicas() == began
        assert reconcile(settings=settings) == []

    # The model's own URL: first the gateway answers there, then the model's replicas.
    with openai.OpenAI(base_url=f"{endpoint.url}/models/lm/v1", api_key="none", max_retries=0) as client:
        for direct in (False, True):
            put(settings, adapters={"fr": "fr/1"}, direct=direct)
            assert names() == ["lm", "lm:fr"]
            assert {name: ask(name) for name in ("lm", "lm:fr")} == {name: said[name] for name in ("lm", "lm:fr")}
            with pytest.raises(openai.NotFoundError):
                ask("other")
    assert replicas() == began


def of_doubles(bundle: Path, directory: Path) -> Path:
    """An adapter whose tensors are of a type that none has; its head is whole."""
    import torch
    from safetensors.torch import load_file, save_file

    directory.mkdir()
    (directory / "adapter_config.json").write_bytes((bundle / "adapter_config.json").read_bytes())
    tensors = load_file(bundle / "adapter_model.safetensors")
    save_file(
        {name: tensor.to(torch.float64) for name, tensor in tensors.items()}, directory / "adapter_model.safetensors"
    )
    return directory
