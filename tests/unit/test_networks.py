"""Networks of a task: built, saved, and trained further from a local directory."""

from pathlib import Path

import pytest

from maas_ray.errors import DataError
from maas_ray.tasks.text_generation import FittedTokenizer, Llama, Pretrained, TextGeneration, TextGenerationSpec
from tests.bundles import TEXT, save_bundle, text_task


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
    with pytest.raises(DataError, match=r"the dataset's tokenizer has \d+ tokens, the model in .* embeds 3\d\d"):
        Pretrained(path=str(directory)).build(larger.fit(rows))


def test_a_directory_without_a_model_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(DataError, match=r"network.path: .* holds no config.json"):
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
