"""The network of a predictor in ONNX Runtime or in Torch: chosen by options and by its files, with equal answers."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from maas_ray import DeploySpec
from maas_ray.errors import DeploymentError
from maas_ray.serve.engines import network
from maas_ray.serve.spec import ServingOptions
from maas_ray.tasks import Task
from tests.support.bundles import image_task, save_bundle
from tests.support.errors import raises

IMAGES = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Path]:
    """A bundle's files with `model.onnx` beside them, as Torch's exporter writes it."""
    import torch

    task, directory = image_task(), tmp_path_factory.mktemp("onnx") / "bundle"
    save_bundle(task, directory)
    pixels = torch.from_numpy(task.encode([{"image": image} for image in IMAGES])["pixel_values"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            task.load_model(directory),
            (),
            directory / "model.onnx",
            kwargs={"pixel_values": pixels},
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    return task, directory


def scores(task: Task, directory: Path, images: np.ndarray = IMAGES, **options: object) -> tuple[str, np.ndarray]:
    found, name = network.load(task, directory, ServingOptions.parse(options))
    return name, task.predict(found, {"image": images})["scores"]


def test_onnx_answers_as_torch_does(exported: tuple[Task, Path]) -> None:
    name, taken = scores(*exported)
    torch_name, expected = scores(*exported, engine="torch")
    assert (name, torch_name) == ("onnxruntime", "torch")
    np.testing.assert_allclose(taken, expected, atol=1e-6)
    np.testing.assert_allclose(scores(*exported, IMAGES[:1])[1], expected[:1], atol=1e-6)


def test_without_an_onnx_file_torch_answers(tmp_path: Path) -> None:
    task = image_task()
    save_bundle(task, tmp_path)
    assert scores(task, tmp_path)[0] == "torch"
    with raises(DeploymentError, "engine_unavailable", "engine: onnxruntime", "model.onnx"):
        scores(task, tmp_path, engine="onnxruntime")


def test_without_onnxruntime_torch_answers(exported: tuple[Task, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.importlib.util, "find_spec", lambda name: None)
    assert scores(*exported)[0].startswith("torch (onnxruntime is not installed")
    with raises(DeploymentError, "engine_unavailable", "pip install 'maas-ray[onnx]'"):
        scores(*exported, engine="onnxruntime")


def test_a_damaged_onnx_file_is_refused(tmp_path: Path) -> None:
    task = image_task()
    save_bundle(task, tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07nonsense")
    with raises(DeploymentError, "model_load_failed", "model.onnx"):
        scores(task, tmp_path)


def test_an_engine_of_the_other_kind_is_refused() -> None:
    DeploySpec.parse({"version": "m/1", "engine": "torch"}).check_kind("predict")
    with raises(DeploymentError, "engine_unfit", "torch", "auto", "openvino, transformers"):
        DeploySpec.parse({"version": "m/1", "engine": "torch"}).check_kind("generate")
    with raises(DeploymentError, "engine_unfit", "openvino", "auto", "onnxruntime, torch"):
        DeploySpec.parse({"version": "m/1", "engine": "openvino"}).check_kind("predict")


@pytest.mark.soak
def test_compiled_answers_as_torch_does(exported: tuple[Task, Path]) -> None:
    np.testing.assert_allclose(
        scores(*exported, engine="torch.compile")[1], scores(*exported, engine="torch")[1], atol=1e-5
    )
