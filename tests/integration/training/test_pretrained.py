"""Transformers' models for sound and images, trained further by DeepSpeed, and loaded by Transformers itself."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maas_ray import EvaluateSpec, PrepareSpec, TrainSpec, evaluate, prepare, train
from maas_ray.settings import Settings
from tests.support import speech, vision

WORDS = [" ".join(pair) for pair in zip(speech.WORDS, speech.WORDS[1:], strict=False)] + list(speech.WORDS)


def clips(directory: Path) -> dict[str, Any]:
    """A table of sound in base64."""
    rows = [
        {"sound": base64.b64encode(speech.file_of(speech.spoken(words, rate), rate)).decode(), "said": words}
        for rate in (16_000, 22_050)
        for words in WORDS
    ]
    path = directory / "clips.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    columns = {"audio": "sound", "transcript": "said"}
    return {"format": "jsonl", "path": str(path), "encoding": "base64", "columns": columns}


def pictures(directory: Path) -> dict[str, Any]:
    random = np.random.default_rng(0)
    for number in range(40):
        label = ("dark", "light")[number % 2]
        path = directory / label / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        shade = random.integers(0, 100, (18, 14, 3)) + 150 * (label == "light")
        Image.fromarray(shade.astype(np.uint8)).save(path)
    return {"format": "image-folder", "path": str(directory)}


CASES: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
    "wav2vec2": ("automatic-speech-recognition", speech.wav2vec2, clips, {"case": "upper"}),
    "whisper": ("automatic-speech-recognition", speech.whisper, clips, {}),
    "vit": ("image-classification", vision.vit, pictures, {}),
    "resnet": ("image-classification", vision.resnet, pictures, {}),
}


@pytest.mark.parametrize(
    "name",
    [
        "whisper",
        "vit",
        pytest.param("wav2vec2", marks=pytest.mark.slow),
        pytest.param("resnet", marks=pytest.mark.soak),
    ],
)
def test_a_model_is_trained_further(name: str, cluster: str, settings: Settings, tmp_path: Path) -> None:
    import transformers

    task, make, source, fields = CASES[name]
    given, data = make(tmp_path / "given"), tmp_path / "data"
    data.mkdir()
    spec = {"type": task, "processor": str(given), **fields}
    shares = {"validation": 0.2, "test": 0.2}
    named = {"dataset": f"pretrained-{name}", "task": spec, "sources": [source(data)], "splits": shares}
    dataset = prepare(PrepareSpec.parse(named), settings=settings)
    assert not dataset.meta.counts.dropped
    version = train(
        TrainSpec.parse(
            {
                "dataset": f"pretrained-{name}",
                "model": f"pretrained-{name}",
                "network": {"type": "pretrained", "path": str(given)},
                "deepspeed": {"zero_optimization": {"stage": 1}},
                "precision": "bf16" if name in ("wav2vec2", "vit") else "fp32",
                "batch_size": 8,
                "max_steps": 4,
                "learning_rate": 1e-3,
                "warmup_steps": 1,
            }
        ),
        settings=settings,
    )
    found = evaluate(EvaluateSpec(version=version.reference), settings=settings).metrics
    assert found["loss"] == pytest.approx(version.metrics["test/loss"], rel=0.1)

    directory = version.open().fetch()
    bundled = version.open().load_task(directory)
    model = getattr(transformers, bundled.auto_model).from_pretrained(directory).eval()
    before = getattr(transformers, bundled.auto_model).from_pretrained(given).state_dict()
    changed = [key for key, value in model.state_dict().items() if key in before and not value.equal(before[key])]
    assert changed
    with torch.inference_mode():
        (rows,) = dataset.read(dataset.row_groups("test")[:1])
        plain = bundled.outcomes(model, bundled.collate(rows))
        ours = bundled.outcomes(bundled.load_model(directory), bundled.collate(rows))
    np.testing.assert_allclose(plain["loss"], ours["loss"], rtol=1e-5)
    auto = transformers.AutoProcessor if "speech" in task else transformers.AutoImageProcessor
    assert auto.from_pretrained(directory)
