"""Directories of pretrained models: the model that is trained is the one in the files, and the one that is served."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maas_ray.errors import DataError
from maas_ray.tasks import Task
from maas_ray.tasks.base import outcomes_of
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.text.classification import TextClassificationSpec
from maas_ray.tasks.text.embeddings import FeatureExtractionSpec
from maas_ray.tasks.text.token_classification import TokenClassificationSpec
from maas_ray.tasks.vision.classification import ImageClassificationSpec
from maas_ray.training.export import export
from tests.support import speech, vision
from tests.support.bundles import TEXT, text_task
from tests.support.checkpoints import save_checkpoint
from tests.support.encoders import wordpiece_bert
from tests.support.errors import raises

WEIGHTS = "model.safetensors"
Rows = list[dict[str, Any]]


def llama(directory: Path, *, tied: bool = True) -> tuple[Task, Rows]:
    from transformers import LlamaConfig, LlamaForCausalLM

    task = text_task(16)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=task.vocab_size, tie_word_embeddings=tied, **sizes)).save_pretrained(
        directory
    )
    return task, [{"text": text} for text in TEXT]


def gpt2(directory: Path) -> tuple[Task, Rows]:
    from transformers import GPT2Config, GPT2LMHeadModel

    task = text_task(16)
    config = GPT2Config(vocab_size=task.vocab_size, n_embd=32, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(directory)
    return task, [{"text": text} for text in TEXT]


def bert(kind: type[Any], rows: Rows) -> Callable[[Path], tuple[Task, Rows]]:
    def made(directory: Path) -> tuple[Task, Rows]:
        wordpiece_bert(directory, TEXT, hidden_size=32)
        spec = kind(tokenizer=str(directory), max_length=16)
        return spec.fit(rows), rows

    return made


def vit(directory: Path) -> tuple[Task, Rows]:
    rows = [{"image": np.full((20, 20, 3), shade, np.uint8), "label": f"{shade}"} for shade in (10, 120, 240)]
    return ImageClassificationSpec(processor=str(vision.vit(directory))).fit(rows), rows


def sound(make: Callable[[Path], Path], **fields: Any) -> Callable[[Path], tuple[Task, Rows]]:
    def made(directory: Path) -> tuple[Task, Rows]:
        from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognitionSpec

        spec = AutomaticSpeechRecognitionSpec(processor=str(make(directory)), **fields)
        clip = {"audio": speech.file_of(speech.spoken("one two")), "transcript": "one two"}
        row = spec.parse_row(clip)
        assert row
        return spec.fit([row]), [row]

    return made


LABELLED = [{"text": text, "label": label} for text, label in zip(TEXT, "abab", strict=True)]
TAGGED = [{"tokens": text.split(), "tags": ["B-X", *["O"] * (len(text.split()) - 1)]} for text in TEXT]
PAIRS = [{"anchor": text[:12], "positive": text} for text in TEXT]
CASES: dict[str, Callable[[Path], tuple[Task, Rows]]] = {
    "llama": llama,
    "llama-untied": lambda directory: llama(directory, tied=False),
    "gpt2": gpt2,
    "text-classification": bert(TextClassificationSpec, LABELLED),
    "token-classification": bert(TokenClassificationSpec, TAGGED),
    "feature-extraction": bert(FeatureExtractionSpec, PAIRS),
    "vit": vit,
    "wav2vec2": sound(speech.wav2vec2, case="upper"),
    "whisper": sound(speech.whisper),
}


def loss_of(task: Task, model: Any, rows: Rows) -> float:
    encoded = task.encode(rows)
    if task.packing:
        stream, length = np.concatenate(encoded["input_ids"]), task.packing.length
        encoded = {"input_ids": stream[: len(stream) // length * length].reshape(-1, length)}
    stored = {name: np.asarray(values) for name, values in encoded.items()}
    return task.metrics(outcomes_of(task, model.eval(), [stored], torch.device("cpu")))["loss"]


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / WEIGHTS)


def rewrite(directory: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file({name: value.contiguous() for name, value in weights.items()}, directory / WEIGHTS, {"format": "pt"})


def as_it_is(directory: Path) -> None:
    pass


def sharded(directory: Path) -> None:
    weights = stored(directory)
    (directory / WEIGHTS).unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, directory / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def in_16_bits(directory: Path) -> None:
    rewrite(directory, {name: value.bfloat16() for name, value in stored(directory).items()})
    amend(directory, dtype="bfloat16")


def of_another_release(directory: Path) -> None:
    """`torch_dtype`, and pickled weights."""
    torch.save(stored(directory), directory / "pytorch_model.bin")
    (directory / WEIGHTS).unlink()
    amend(directory, torch_dtype="float32")


def with_another_head(directory: Path) -> None:
    rewrite(directory, stored(directory) | {"another_head.weight": torch.ones(3, 3)})


def amend(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


SHAPES = [as_it_is, sharded, in_16_bits, of_another_release, with_another_head]


def served(task: Task, network: Pretrained, module: Any, directory: Path, stage: int = 1) -> Any:
    """The model of a bundle that was exported from a checkpoint of a network."""
    (directory / "bundle").mkdir(parents=True)
    export(
        save_checkpoint(module, directory / "saved", stage), SimpleNamespace(task=task), network, directory / "bundle"
    )  # type: ignore[arg-type]
    return task.load_model(directory / "bundle")


COMBINATIONS = [(case, shape) for case in CASES for shape in (SHAPES if "llama" in case else SHAPES[1::2])]


@pytest.mark.parametrize(("case", "shape"), COMBINATIONS, ids=lambda each: getattr(each, "__name__", each))
def test_the_loss_in_training_is_the_loss_of_the_version(case: str, shape: Callable[[Path], None], tmp_path: Path):
    import transformers

    given = tmp_path / "given"
    torch.manual_seed(0)
    task, rows = CASES[case](given)
    auto = getattr(transformers, task.auto_model)
    reference, report = auto.from_pretrained(given, output_loading_info=True)
    shape(given)
    network = Pretrained(path=str(given))
    network.check(task)
    module = network.build(task)
    held = module.state_dict()
    for name, value in reference.state_dict().items():
        if name in held and name not in report["missing_keys"]:
            torch.testing.assert_close(held[name], value, rtol=1e-2 if shape is in_16_bits else 0, atol=0)
    loss = loss_of(task, module, rows)
    assert loss_of(task, served(task, network, module, tmp_path), rows) == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_head_of_its_own_stays_one_though_the_configuration_ties_it(stage: int, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    task, rows = llama(tmp_path / "given", tied=False)
    amend(tmp_path / "given", tie_word_embeddings=True)
    network = Pretrained(path=str(tmp_path / "given"))
    assert network.check(task) == []
    module = network.build(task)
    assert module.lm_head.weight is not module.model.embed_tokens.weight
    assert torch.equal(module.lm_head.weight, stored(tmp_path / "given")["lm_head.weight"])
    loss = loss_of(task, module, rows)
    assert loss_of(task, served(task, network, module, tmp_path, stage), rows) == pytest.approx(loss, abs=1e-6)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "bundle")
    assert alone.config.tie_word_embeddings is False
    assert torch.equal(alone.lm_head.weight, module.lm_head.weight)


def test_weights_that_are_tied_and_stored_twice_stay_tied(tmp_path: Path):
    task, _ = llama(tmp_path)
    weights = stored(tmp_path)
    rewrite(tmp_path, weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    module = Pretrained(path=str(tmp_path)).build(task)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert module.config.tie_word_embeddings


def test_a_base_without_its_prefix_is_loaded_whole(tmp_path: Path):
    task, _ = gpt2(tmp_path)  # as GPT-2's own files are written
    expected = stored(tmp_path)
    rewrite(tmp_path, {name.removeprefix("transformer."): value for name, value in expected.items()})
    network = Pretrained(path=str(tmp_path))
    assert network.check(task) == []
    held = network.build(task).state_dict()
    assert all(torch.equal(held[name], value) for name, value in expected.items())


def test_a_new_head_and_weights_without_use_are_reported(tmp_path: Path):
    task, _ = CASES["text-classification"](tmp_path / "bert")
    new, *_ = Pretrained(path=str(tmp_path / "bert")).check(task)
    assert "classifier.bias" in new
    assert "classifier.weight" in new
    shutil.copytree(tmp_path / "bert", tmp_path / "more")
    with_another_head(tmp_path / "more")
    assert "another_head.weight" in Pretrained(path=str(tmp_path / "more")).check(task)[-1]


def without_head(directory: Path) -> None:
    weights = stored(directory)
    del weights["lm_head.weight"]
    rewrite(directory, weights)


def of_a_wrapper(directory: Path) -> None:
    rewrite(directory, {f"module.{name}": value for name, value in stored(directory).items()})


def with_fewer_layers(directory: Path) -> None:
    amend(directory, num_hidden_layers=3)


@pytest.mark.parametrize("spoil", [without_head, of_a_wrapper, with_fewer_layers], ids=lambda each: each.__name__)
def test_a_model_whose_weights_would_be_random_is_refused(spoil: Callable[[Path], None], tmp_path: Path):
    task, _ = llama(tmp_path, tied=False)
    spoil(tmp_path)
    with raises(DataError, "weights_missing", tmp_path):
        Pretrained(path=str(tmp_path)).check(task)


def test_weights_in_another_shape_are_refused_unless_they_are_the_heads(tmp_path: Path):
    task, _ = CASES["text-classification"](tmp_path)
    weights = stored(tmp_path)
    rewrite(tmp_path, weights | {"classifier.weight": torch.ones(7, 32), "classifier.bias": torch.ones(7)})
    assert "classifier.weight" in Pretrained(path=str(tmp_path)).check(task)[0]
    name = "encoder.layer.0.intermediate.dense.weight"
    rewrite(tmp_path, weights | {name: torch.ones(5, 32)})
    with raises(DataError, "weights_missing", name):
        Pretrained(path=str(tmp_path)).check(task)


def test_adapters_and_quantized_weights_are_refused(tmp_path: Path):
    task, _ = llama(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with raises(DataError, "adapter_unsupported", tmp_path):
        Pretrained(path=str(tmp_path)).check(task)
    (tmp_path / "adapter_config.json").unlink()
    amend(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with raises(DataError, "quantized_unsupported", tmp_path):
        Pretrained(path=str(tmp_path)).check(task)


def test_sequences_longer_than_learnt_positions_are_refused(tmp_path: Path):
    gpt2(tmp_path / "gpt2")
    with raises(DataError, "texts_too_long", 16, 17):
        Pretrained(path=str(tmp_path / "gpt2")).check(text_task(17))
    llama(tmp_path / "llama")
    amend(tmp_path / "llama", max_position_embeddings=16)  # rotary positions go on
    Pretrained(path=str(tmp_path / "llama")).check(text_task(17))
