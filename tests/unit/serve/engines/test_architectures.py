"""Every architecture that OpenVINO's engine claims to know: its answers are those of Transformers and of PEFT."""

from pathlib import Path
from typing import Any

import pytest

from maas_ray.serve.engines.openvino.conversion import ARCHITECTURES, Converted
from maas_ray.serve.engines.openvino.engine import OpenVinoEngine
from tests.support.adapters import save_adapter
from tests.support.engines import greedy, request, run_all
from tests.support.openvino import convert

SHAPE = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SHAPE | {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 16}
SHAPES = {
    "llama": LLAMA,
    "qwen2": LLAMA | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "qwen3": LLAMA,
    "qwen3_moe": LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mistral": LLAMA | {"sliding_window": 16},
    "phi3": LLAMA | {"sliding_window": 16, "pad_token_id": 0},
    "gemma": LLAMA,
    "gemma3_text": LLAMA | {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": SHAPE | {"intermediate_size": 96, "max_position_embeddings": 256},
}


@pytest.mark.parametrize(
    ("architecture", "stored"), [*((name, "float32") for name in sorted(ARCHITECTURES)), ("llama", "bfloat16")]
)
def test_an_architecture_answers_like_transformers_and_accepts_adapters(
    architecture: str, stored: str, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(architecture, bos_token_id=0, eos_token_id=0, **SHAPES[architecture])
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.mul_(3)  # else attention hardly tells one token from another
    network.to(getattr(torch, stored)).save_pretrained(tmp_path / "base")
    experts = {"target_modules": ["q_proj", "v_proj", "o_proj"]} if architecture == "qwen3_moe" else {}
    merged = save_adapter(tmp_path / "base", tmp_path / "adapter", size=0.2, **experts)
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1, 320, (length,), generator=draw).tolist() for length in (1, 20, 90)]

    model = convert(tmp_path / "base", architecture, tmp_path)
    plain, adapted = _answers(model, prompts), _answers(model, prompts, tmp_path / "adapter")

    assert plain == [greedy(network.float(), prompt, 32) for prompt in prompts]
    assert adapted == [greedy(merged, prompt, 32) for prompt in prompts]
    assert plain != adapted


def _answers(model: Converted, prompts: list[list[int]], adapter: Path | None = None) -> list[Any]:
    limits = {"threads": 1, "max_requests": 8, "kv_cache_bytes": 10**9, "prefill_tokens": 64}
    engine = OpenVinoEngine(model, adapter=adapter, **limits)
    try:
        return run_all(engine, [request(prompt, max_tokens=32) for prompt in prompts])
    finally:
        engine.close()
