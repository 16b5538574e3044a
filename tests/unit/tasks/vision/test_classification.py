"""Image classification's networks: the platform's own, and those of Transformers. Rows and requests: `test_tasks`."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from maas_ray.errors import DataError, SpecError
from maas_ray.tasks import load_task
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.vision.classification import ImageClassification, ImageClassificationSpec
from maas_ray.tasks.vision.networks import Cnn, ResNet
from maas_ray.tasks.vision.processor import ImageProcessor
from maas_ray.tasks.vision.requests import ImageRow
from tests.support.bundles import image_task
from tests.support.errors import raises
from tests.support.vision import resnet, vit

RANDOM = np.random.default_rng(0)


def rows_of(size: int = 12, channels: int = 1, each: int = 8) -> list[dict[str, Any]]:
    """Images of a bright band, which lies across or upright."""
    rows = []
    for label in ("across", "upright"):
        for _ in range(each):
            image = RANDOM.integers(0, 60, (size, size, channels)).astype(np.uint8)
            place = RANDOM.integers(0, size - 3)
            band = (slice(place, place + 3), slice(None))
            image[band if label == "across" else band[::-1]] += 150
            rows.append({"image": image, "label": label})
    return rows


def learned(task: ImageClassification, network: Any, rows: list[dict[str, Any]], steps: int, rate: float) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = network.build(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    batch = task.collate(task.encode(rows))
    for _ in range(steps):
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def saved(task: ImageClassification, network: Any, model: Any, directory: Path) -> Path:
    directory.mkdir()
    task.save(directory)
    network.write_config(model, task, directory)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def file_of(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(data, "PNG")
    return data.getvalue()


# --- the platform's own networks -------------------------------------------------------------------


def test_the_cnn_of_the_founding_documents() -> None:
    """28×28×1, 32-64-128-10: the network of `jobs/specs/digits-train.yaml`, at MNIST's size."""
    task = image_task(tuple("0123456789"), size=28)
    model = Cnn(channels=(32, 64), hidden_size=128).build(task)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [tuple(layer.weight.shape) for layer in layers] == [
        (32, 1, 3, 3), (64, 32, 3, 3), (128, 64 * 7 * 7), (10, 128)
    ]  # fmt: skip
    assert model(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 10)


def test_a_residual_network_learns_and_is_the_same_in_a_bundle(tmp_path: Path) -> None:
    rows = rows_of()
    task, network = ImageClassificationSpec().fit(rows), ResNet(blocks=(1, 1), width=16)
    model = learned(task, network, rows, 30, 1e-2)
    with torch.inference_mode():
        found = task.metrics(task.outcomes(model, task.collate(task.encode(rows))))
    assert found["accuracy"] > 0.9
    assert {"precision", "recall", "f1", "roc_auc", "loss"} <= found.keys()

    again = load_task(saved(task, network, model, tmp_path / "bundle"))
    images = np.stack([row["image"] for row in rows])
    answer = again.predict(again.load_model(tmp_path / "bundle"), {"image": images})
    assert (answer["label"] == [row["label"] for row in rows]).mean() == found["accuracy"]


@pytest.mark.parametrize(("size", "side"), [(32, 8), (96, 6), (7, 2)])
def test_a_residual_network_takes_small_and_large_images(size: int, side: int) -> None:
    network = ResNet(blocks=(2, 2, 1), width=16)
    model = network.build(image_task(size=size))
    places = model.stages(model.stem(torch.zeros(1, 1, size, size)))
    assert places.shape == (1, 64, side, side)
    depth = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)]
    assert len(depth) == 1 + 2 * 5
    assert model.bfloat16()(torch.zeros(1, 1, size, size, dtype=torch.uint8)).shape == (1, 2)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    task = image_task(size=16)
    for network in (Cnn(), ResNet()):
        model = network.build(task).train()
        model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else None)
        pixels = torch.randint(0, 255, (4, 1, 16, 16), dtype=torch.uint8)
        torch.testing.assert_close(model(pixels)[:1], model(pixels[:1]), atol=1e-5, rtol=1e-5)


# --- models of Transformers ------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "channels"), [(vit, 1), (vit, 3), (resnet, 3)])
def test_a_vision_model_is_trained_further_and_loads_in_transformers(make: Any, channels: int, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    given = make(tmp_path / "given")
    rows = rows_of(size=20, channels=channels)
    spec = ImageClassificationSpec(processor=str(given))
    task, network = spec.fit(rows), Pretrained(path=str(given))
    model = learned(task, network, rows, 20, 3e-3)
    directory = saved(task, network, model, tmp_path / "bundle")
    assert network.skeleton(task).state_dict().keys() == model.state_dict().keys()

    again, plain = load_task(directory), AutoModelForImageClassification.from_pretrained(directory).eval()
    assert plain.config.id2label == {0: "across", 1: "upright"}
    processor = AutoImageProcessor.from_pretrained(directory)
    for row in rows[:3]:
        inputs = again.to_inputs(ImageRow(image=file_of(row["image"])))
        answer = again.predict(again.load_model(directory), {"image": inputs["image"][None]})
        shown = np.repeat(row["image"], 3, 2) if channels == 1 else row["image"]
        with torch.inference_mode():
            scores = plain(**processor(shown, return_tensors="pt")).logits.softmax(-1).numpy()
        np.testing.assert_allclose(answer["scores"], scores, atol=1e-4)
    batch = again.collate(again.encode(rows))
    assert batch["pixel_values"].dtype == torch.uint8  # a quarter of the bytes to copy; normalised on the device
    with torch.inference_mode():
        outcomes = again.outcomes(again.load_model(directory), batch)
        shown = np.stack([row["image"] if channels == 3 else np.repeat(row["image"], 3, 2) for row in rows])
        logits = plain(**processor([*shown], return_tensors="pt")).logits
        expected = torch.nn.functional.cross_entropy(logits, batch["label"], reduction="none").numpy()
    np.testing.assert_allclose(outcomes["loss"], expected, atol=1e-3)


def test_requests_of_any_size_and_mode_are_taken(tmp_path: Path) -> None:
    task = ImageClassificationSpec(processor=str(vit(tmp_path / "given"))).fit(rows_of())
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"):
        data = io.BytesIO()
        format = "TIFF" if mode == "CMYK" else "PNG"
        Image.new(mode, (37, 21)).save(data, format)
        assert task.to_inputs(ImageRow(image=data.getvalue()))["image"].shape == (16, 16, 3)


def test_without_a_processor_file_the_models_size_is_taken(tmp_path: Path) -> None:
    given = vit(tmp_path / "given")
    (given / "preprocessor_config.json").unlink()
    task = ImageClassificationSpec(processor=str(given)).fit(rows_of())
    assert task.shape == (3, 16, 16)
    seen: list[torch.Tensor] = []

    class Seeing(torch.nn.Linear):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            seen.append(pixel_values)
            return super().forward(pixel_values.mean((2, 3)))

    task.logits(Seeing(3, 2), task.collate(task.encode(rows_of())))
    assert seen[0].mean().abs() < 0.1
    assert seen[0].std() == pytest.approx(1, abs=0.1)
    assert load_task(saved(task, Pretrained(path=str(given)), Pretrained(path=str(given)).build(task), tmp_path / "b"))


def test_a_model_or_processor_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    given, rows = vit(tmp_path / "given"), rows_of()
    with raises(DataError, "processor_missing", f"processor: {given}"):
        Pretrained(path=str(given)).build(ImageClassificationSpec().fit(rows))
    other = ImageClassificationSpec(processor=str(resnet(tmp_path / "other"))).fit(rows)
    with raises(DataError, "wrong_image_shape", "32x32", "3 channels", f"processor: {given}"):
        Pretrained(path=str(given)).build(other)
    with raises(DataError, "file_missing", "config.json"):
        ImageClassificationSpec(processor=str(tmp_path)).fit(rows)
    with raises(DataError, "file_missing", "config.json"):
        ImageClassificationSpec(processor=str(tmp_path)).identity()
    with raises(SpecError, "conflicting_fields", "processor", "`image_size`", "`color`"):
        ImageClassificationSpec.parse({"processor": "x", "image_size": 3}, source="test")
    (given / "preprocessor_config.json").write_text("{")
    with raises(DataError, "invalid_processor", given):
        ImageClassificationSpec(processor=str(given)).fit(rows)


def test_fingerprints_stay_where_no_processor_is_named(tmp_path: Path) -> None:
    assert "processor" not in ImageClassificationSpec().identity()
    found = ImageClassificationSpec(processor=str(vit(tmp_path / "given"))).identity()["processor"]
    assert found.keys() == {"config.json", "preprocessor_config.json"}


@pytest.mark.parametrize("kind", ["EfficientNet", "ViT", "CLIP", "Levit", "MobileNetV2", "MobileViT", "Bit"])
def test_values_are_the_processors_own_whatever_it_calls_rescaling(kind: str, tmp_path: Path) -> None:
    getattr(transformers, f"{kind}ImageProcessorPil")().save_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
    processor = ImageProcessor(tmp_path, 3)
    mean, std = (np.array(values)[:, None, None] for values in (processor.mean, processor.std))
    expected = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose((processor.resized(image) / 255 - mean) / std, expected, atol=1e-5)


def test_a_processor_that_does_more_than_to_rescale_is_refused(tmp_path: Path) -> None:
    clusters = [[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    transformers.ImageGPTImageProcessorPil(clusters=clusters, size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    with raises(DataError, "invalid_processor", tmp_path):
        ImageProcessor(tmp_path, 3)
