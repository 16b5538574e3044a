"""Text served by vLLM on all GPUs there are, through the gateway; its adapters too. Needs the extra `vllm`."""

from pathlib import Path

import pytest

from maas_ray import DeploySpec, deploy, undeploy
from maas_ray.serve.engines.vllm import installed
from maas_ray.settings import Settings
from tests.support.adapters import register_adapter, save_adapter
from tests.support.bundles import register, text_task

TEXT = text_task()


@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(not installed(), reason="needs vLLM")
def test_vllm_says_what_transformers_and_peft_say(settings: Settings, gpus: int, tmp_path: Path) -> None:
    import openai
    import torch
    from ray import serve

    register(settings, "lm", TEXT, tmp_path / "lm", hidden_size=128)  # vLLM takes no heads as narrow as 16
    merged = save_adapter(tmp_path / "lm", tmp_path / "fr")
    register_adapter(settings, "fr", tmp_path / "fr")
    spec = DeploySpec.parse(
        {
            "version": "lm@champion",
            "scaling": {"max_replicas": 1},
            # The model has two heads, which can be shared by so many GPUs.
            "resources": {"cpus": 1, "gpus": min(gpus, 2)},
            "adapters": {"fr": "fr@champion"},
            "vllm": {"dtype": "float32", "enable_lora": True, "gpu_memory_utilization": 0.3},
            "startup_timeout_s": 600,
        }
    )
    endpoint = deploy(spec, settings=settings)
    try:
        assert endpoint.engine == "vllm"
        prompt = TEXT.tokenizer.encode("for name in").ids
        with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0) as client:
            for name, network in (("lm", TEXT.load_model(tmp_path / "lm")), ("lm:fr", merged)):
                ids = network.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0)
                answer = client.completions.create(model=name, prompt="for name in", max_tokens=12, temperature=0)
                assert answer.choices[0].text == TEXT.tokenizer.decode(ids[0, len(prompt) :].tolist())
            seeded = {"model": "lm", "prompt": "def ", "max_tokens": 20, "seed": 3}
            first, second = (client.completions.create(**seeded).choices[0].text for _ in range(2))
            assert first == second
    finally:
        undeploy("lm", settings=settings)
        serve.shutdown()
