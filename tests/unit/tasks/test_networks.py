"""Networks of a task: built, saved, and trained further from a local directory."""

from pathlib import Path

import pytest

from maas_ray.errors import DataError
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.text.generation import TextGeneration, TextGenerationSpec
from maas_ray.tasks.text.networks import Llama
from maas_ray.tasks.text.tokenization import FittedTokenizer
from tests.support import ranks
from tests.support.bundles import TEXT, save_bundle, text_task
from tests.support.errors import raises


def test_a_saved_model_is_trained_further_from_its_own_weights(tmp_path: Path):
    import torch

    task = text_task()
    directory = save_bundle(task, tmp_path / "model", seed=3)
    given = TextGenerationSpec(tokenizer=str(directory), sequence_length=32).fit([])
    network = Pretrained(path=str(directory)).build(given)
    assert network.dtype == torch.float32
    batch = {"input_ids": torch.tensor([given.encode([{"text": TEXT[0]}])["input_ids"][0].tolist()])}
    with torch.no_grad():
        assert given.loss(network.eval(), batch) == pytest.approx(task.loss(task.load_model(directory), batch).item())


def test_a_model_that_embeds_fewer_tokens_than_the_dataset_has_is_refused(tmp_path: Path):
    directory = save_bundle(text_task(), tmp_path / "model")
    larger = TextGenerationSpec(tokenizer=FittedTokenizer(vocab_size=400), sequence_length=32)
    rows = [{"text": " ".join(f"{number} {number * number}" for number in range(2000))}]
    task = larger.fit(rows)
    with raises(DataError, "vocabulary_too_large", task.vocab_size, directory):
        Pretrained(path=str(directory)).build(task)


def test_a_directory_without_a_model_is_an_error_that_names_it(tmp_path: Path):
    with raises(DataError, "file_missing", "network.path", tmp_path, "config.json"):
        Pretrained(path=str(tmp_path)).build(text_task())


def test_a_llama_has_the_shape_that_was_asked_for():
    task = text_task()
    assert isinstance(task, TextGeneration)
    network = Llama(hidden_size=64, layers=3, heads=4, kv_heads=2, context_length=512).build(task)
    config = network.config
    assert (config.num_hidden_layers, config.num_key_value_heads, config.max_position_embeddings) == (3, 2, 512)
    assert config.vocab_size == task.vocab_size
    assert config.eos_token_id == task.end_of_text_id
    assert config.intermediate_size == 192


def test_gradient_checkpointing_computes_layers_twice_and_the_very_same_gradients(tmp_path: Path):
    import torch

    task = text_task()
    directory = save_bundle(task, tmp_path / "model")
    batch = {"input_ids": torch.tensor([task.encode([{"text": TEXT[0]}])["input_ids"][0].tolist()])}

    def passes_and_gradients(model: torch.nn.Module) -> tuple[int, list[torch.Tensor]]:
        passes = []
        model.model.layers[0].self_attn.register_forward_hook(lambda *_: passes.append(1))
        task.loss(model.train(), batch).backward()
        trained, passes[:] = len(passes), []
        with torch.no_grad():
            task.loss(model.eval(), batch)
        assert len(passes) == 1
        return trained, [parameter.grad for parameter in model.parameters()]

    once, plain = passes_and_gradients(Pretrained(path=str(directory)).build(task))
    twice, recomputed = passes_and_gradients(Pretrained(path=str(directory), gradient_checkpointing=True).build(task))
    assert (once, twice) == (1, 2)
    assert all(map(torch.equal, plain, recomputed))
    config = Llama(hidden_size=32, layers=2, heads=2, gradient_checkpointing=True).build(task).config
    assert "gradient_checkpointing" not in config.to_dict(), "it is how the run trains, not what the model is"


SHARDED = """
import deepspeed, torch, sys
from maas_ray.tasks.speech.networks import ConvLstm
from maas_ray.tasks.vision.networks import Cnn, ResNet
from maas_ray.tasks.text.networks import Llama
from maas_ray.training.deepspeed.build import load_communication
from maas_ray.training.deepspeed.zero3 import build_sharded
from tests.support.bundles import image_task, text_task
from tests.support.speech import speech_task

load_communication()  # as a worker does before DeepSpeed would
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
config = {"train_batch_size": 1, "zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
for task, spec in (
    (image_task(), Cnn(channels=(8,), hidden_size=8)),
    (image_task(), ResNet(blocks=(1, 1), width=16)),
    (speech_task(), ConvLstm(channels=8, hidden_size=8)),
    (text_task(), Llama(hidden_size=32, layers=2)),
):
    torch.manual_seed(0)
    whole = spec.build(task)
    torch.manual_seed(0)
    shares = build_sharded(spec, task, config)
    named = dict(shares.named_parameters())
    assert named.keys() == dict(whole.named_parameters()).keys()
    assert all(value.numel() == 0 and value.dtype == torch.bfloat16 for value in named.values())
    for name, value in shares.named_buffers():
        assert torch.equal(value, whole.get_buffer(name)) and value.dtype == torch.float32, name
    with deepspeed.zero.GatheredParameters(list(named.values())):
        for name, value in whole.named_parameters():
            assert named[name].shape == value.shape
            if task.kind == "predict":
                assert torch.equal(named[name], value.bfloat16()), name
            else:  # Transformers draws other values of the same distribution
                assert abs(named[name].float().std() - value.std()) < 0.003, name
"""


def test_a_network_built_in_zero_3_shards_equals_the_whole_network(tmp_path: Path):
    ranks.run(SHARDED, tmp_path, world=1)
