"""Scanned digits from files to answers, by the specs that users have."""

import base64
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from maas_ray import DeploySpec, EvaluateSpec, PrepareSpec, TrainSpec, deploy, evaluate, prepare, train, undeploy
from maas_ray.sample_data import SAMPLES
from maas_ray.settings import Settings
from tests.support import ROOT

SPECS = ROOT / "jobs/specs"


@pytest.mark.usefixtures("cluster")
def test_digits(settings: Settings, tmp_path: Path) -> None:
    path = SAMPLES["digits"](tmp_path)
    dataset = prepare(
        PrepareSpec.from_yaml(SPECS / "digits-prepare.yaml", [f"sources.0.path={path}"]), settings=settings
    )
    assert dataset.meta.counts.read == 1797
    assert dataset.task.labels == list("0123456789")  # type: ignore[attr-defined]

    version = train(TrainSpec.from_yaml(SPECS / "digits-train.yaml", ["workers=1", "epochs=4"]), settings=settings)
    report = evaluate(EvaluateSpec(version="digits-cnn@champion", resamples=20, cpus_per_worker=0.5), settings=settings)
    assert report.metrics["accuracy"] > 0.9
    assert report.metrics["accuracy"] == pytest.approx(version.metrics["test/accuracy"], abs=1e-6)
    assert set(report.metrics) == {"loss", "accuracy", "precision", "recall", "f1", "roc_auc", "classes"}

    spec = {"version": "digits-cnn@champion", "resources": {"cpus": 0.5}, "scaling": {"max_replicas": 1}}
    url = deploy(DeploySpec.parse(spec), settings=settings).url
    try:
        data = load_digits()
        some = slice(0, 200)
        pixels = (data.images[some] * 255 / 16).astype(np.uint8)
        rows = [{"image": image.tolist()} for image in pixels]
        answer = httpx.post(f"{url}/v1/models/digits-cnn/predict", json={"instances": rows}, timeout=60).json()
        right = [
            one["label"] == str(label) for one, label in zip(answer["predictions"], data.target[some], strict=True)
        ]
        assert np.mean(right) > 0.9

        # A file of another size and mode is converted as the images of the training were.
        file = io.BytesIO()
        Image.fromarray(pixels[0]).resize((120, 80)).convert("RGBA").save(file, "PNG")
        sent = httpx.post(f"{url}/v1/models/digits-cnn/predict", files={"file": ("0.png", file.getvalue())}, timeout=60)
        assert sent.json()["label"] == "0"
        encoded = {"image": base64.b64encode(file.getvalue()).decode()}
        assert httpx.post(f"{url}/v1/models/digits-cnn/predict", json=encoded, timeout=60).json() == sent.json()

        tensor = {"name": "image", "datatype": "UINT8", "shape": [200, 8, 8, 1], "data": pixels.ravel().tolist()}
        found = httpx.post(f"{url}/v2/models/digits-cnn/infer", json={"inputs": [tensor]}, timeout=60).json()
        (labels,) = [output["data"] for output in found["outputs"] if output["name"] == "label"]
        assert labels == [one["label"] for one in answer["predictions"]]
    finally:
        undeploy("digits-cnn", settings=settings)
