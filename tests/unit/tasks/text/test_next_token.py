"""The loss in chunks: the same loss and gradients as Torch gives for all logits at once, in half the memory."""

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers

from maas_ray.tasks.network import OnDevice
from maas_ray.tasks.text import next_token
from maas_ray.tasks.text.documents import next_token_losses

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, tuple[Any, bool]] = {
    # a name: the configuration, and whether its head is computed in chunks
    "llama-tied": (lambda: transformers.LlamaConfig(vocab_size=300, tie_word_embeddings=True, **SIZES), True),
    "llama-untied": (lambda: transformers.LlamaConfig(vocab_size=300, tie_word_embeddings=False, **SIZES), True),
    "gpt2": (lambda: transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2), True),
    "neox": (lambda: transformers.GPTNeoXConfig(vocab_size=300, **SIZES), True),
    "phi": (lambda: transformers.PhiConfig(vocab_size=300, **SIZES), True),  # its head has a bias
    "qwen3-moe": (
        lambda: transformers.Qwen3MoeConfig(
            vocab_size=300,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            num_key_value_heads=2,
            **SIZES,
        ),
        True,
    ),
    "gemma2": (lambda: transformers.Gemma2Config(vocab_size=300, head_dim=16, num_key_value_heads=2, **SIZES), False),
    "cohere": (lambda: transformers.CohereConfig(vocab_size=300, **SIZES), False),
    "granite": (lambda: transformers.GraniteConfig(vocab_size=300, logits_scaling=8.0, **SIZES), False),
}


def network(name: str) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[name][0](), dtype=torch.float32).eval()


def reference(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_gradients_are_those_of_all_logits(name: str, frozen: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(next_token, "MAX_LOGITS", 7 * 300)  # 3 rows of 19 tokens in chunks of 7
    ids = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(1))
    labels = ids.where(torch.arange(20) % 5 > 0, -100)
    found: list[tuple[Any, ...]] = []
    for losses_of in (reference, next_token_losses):
        model = network(name)
        model.get_output_embeddings().requires_grad_(not frozen)
        losses = losses_of(model, {"input_ids": ids, "labels": labels})
        (losses * torch.linspace(0, 2, 19)).mean().backward()
        gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        found.append((losses.detach(), gradients))
        with torch.inference_mode():
            torch.testing.assert_close(losses_of(model, {"input_ids": ids, "labels": labels}), losses.detach())
    (expected, gradients), (losses, own) = found
    torch.testing.assert_close(losses, expected)
    assert own.keys() == gradients.keys()
    for key, value in gradients.items():
        torch.testing.assert_close(own[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_only_a_head_that_makes_the_logits_is_computed_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(next_token, "MAX_LOGITS", 7 * 300)
    model, widths = network(name), []
    whole = next_token._cross_entropy
    monkeypatch.setattr(next_token, "_cross_entropy", lambda x, y: widths.append(len(x)) or whole(x, y))  # type: ignore[func-returns-value]
    with torch.inference_mode():
        next_token_losses(OnDevice(model, "cpu"), {"input_ids": torch.zeros(3, 20, dtype=torch.int64)})
    assert max(widths) == (7 if CONFIGS[name][1] else 57)
    assert "forward" not in vars(model.get_output_embeddings())


def test_few_logits_are_made_at_once_since_chunks_are_computed_twice(monkeypatch: pytest.MonkeyPatch):
    model, calls = network("llama-tied"), []
    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", lambda *given, **_: calls.append(given))
    next_token_losses(model, {"input_ids": torch.zeros(3, 20, dtype=torch.int64)})
    assert not calls


MEASURE = """
import re, sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from maas_ray.tasks.text import next_token
from maas_ray.tasks.text.documents import next_token_losses

next_token.MAX_LOGITS = int(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=32_000, **sizes))
ids = torch.randint(0, 32_000, (4, 512))
next_token_losses(model, {'input_ids': ids[:1, :8]}).mean().backward()
held = int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
loss = next_token_losses(model, {'input_ids': ids}).mean()
loss.backward()
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(peak - held, loss.item())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_step_with_a_vocabulary_of_32_thousand_needs_less_than_half_the_memory():
    found = []
    for limit in (1 << 60, next_token.MAX_LOGITS):
        command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found.append([float(value) for value in re.findall(r"\S+", done.stdout.splitlines()[-1])])
    (whole, loss), (chunks, same) = found
    print(f"peak {whole / 1024:.0f} MiB at once, {chunks / 1024:.0f} MiB in chunks: {chunks / whole:.2f}")
    assert chunks < 0.5 * whole
    assert same == pytest.approx(loss, rel=1e-6)
