"""Tables from their files to answers, by the specs that users have."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from maas_ray import DeploySpec, EvaluateSpec, PrepareSpec, TrainSpec, deploy, evaluate, prepare, train, undeploy
from maas_ray.data.dataset import PreparedDataset
from maas_ray.data.names import SPLITS
from maas_ray.sample_data import SAMPLES
from maas_ray.settings import Settings
from tests.support import ROOT

SPECS = ROOT / "jobs/specs"

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def served(settings: Settings) -> Iterator[list[str]]:
    """Endpoints to take down in the end."""
    names: list[str] = []
    yield names
    for name in names:
        undeploy(name, settings=settings)


def prepared(name: str, directory: Path, settings: Settings) -> PreparedDataset:
    path = SAMPLES[name](directory)
    spec = PrepareSpec.from_yaml(SPECS / f"{name}-prepare.yaml", [f"sources.0.path={path}"])
    return prepare(spec, settings=settings)


def ask(url: str, path: str, body: Any, status: int = 200) -> Any:
    answer = httpx.post(f"{url}{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_regression(settings: Settings, tmp_path: Path, served: list[str]) -> None:
    dataset = prepared("diabetes", tmp_path, settings)
    with (tmp_path / "diabetes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert dataset.meta.counts.read == sum(dataset.split(split).rows for split in SPLITS) == len(rows) == 442
    features = dataset.task.features  # type: ignore[attr-defined]
    assert [column.name for column in features.categories] == ["sex"]

    version = train(TrainSpec.from_yaml(SPECS / "diabetes-train.yaml"), settings=settings)
    report = evaluate(EvaluateSpec(version="diabetes@champion", resamples=20, cpus_per_worker=0.5), settings=settings)
    assert report.metrics["r2"] > 0.3
    assert report.metrics["mae"] == pytest.approx(version.metrics["test/mae"], rel=1e-3)
    assert set(report.metrics) == {"loss", "mse", "mae", "r2"}

    endpoint = deploy(
        DeploySpec.parse({"version": "diabetes@champion", "resources": {"cpus": 0.5}, "scaling": {"max_replicas": 1}}),
        settings=settings,
    )
    served.append("diabetes")
    target = np.array([float(row["progression"]) for row in rows])
    asked = [
        {name: value if name == "sex" else float(value) for name, value in row.items() if name != "progression"}
        for row in rows
    ]
    path = "/v1/models/diabetes/predict"
    answers = [
        answer["prediction"]
        for start in range(0, len(asked), 200)
        for answer in ask(endpoint.url, path, {"instances": asked[start : start + 200]})["predictions"]
    ]
    assert np.corrcoef(answers, target)[0, 1] > 0.65
    one = ask(endpoint.url, path, asked[0])
    assert one == {"model": "diabetes", "version": "1", "prediction": pytest.approx(answers[0])}

    # A missing or unknown value is accepted; a text in place of a number is not.
    for odd in ({"bmi": None}, {"sex": None}, {"sex": "unheard of"}, {"sex": None, "bmi": None, "s5": None}):
        assert 20 < ask(endpoint.url, path, asked[0] | odd)["prediction"] < 400
    left_out = {name: value for name, value in asked[0].items() if name != "bmi"}
    assert ask(endpoint.url, path, left_out) == ask(endpoint.url, path, asked[0] | {"bmi": None})
    refused = ask(endpoint.url, path, asked[0] | {"bmi": "large"}, 400)["error"]
    assert (refused["param"], refused["code"]) == ("bmi", "invalid_type")

    tensors = [
        {"name": name, "shape": [2]}
        | (
            {"datatype": "BYTES", "data": [asked[0][name], None]}
            if name == "sex"
            else {"datatype": "FP64", "data": [asked[0][name], None]}
        )
        for name in asked[0]
    ]
    [output] = ask(endpoint.url, "/v2/models/diabetes/infer", {"inputs": tensors})["outputs"]
    assert output["data"] == pytest.approx([answers[0], ask(endpoint.url, path, {})["prediction"]])


def test_classification(settings: Settings, tmp_path: Path, served: list[str]) -> None:
    from sklearn.datasets import load_breast_cancer

    dataset = prepared("breast-cancer", tmp_path, settings)
    assert dataset.task.labels == ["benign", "malignant"]  # type: ignore[attr-defined]
    train(TrainSpec.from_yaml(SPECS / "breast-cancer-train.yaml"), settings=settings)
    report = evaluate(
        EvaluateSpec(version="breast-cancer@champion", resamples=20, cpus_per_worker=0.5), settings=settings
    )
    assert report.metrics["accuracy"] > 0.93
    assert report.metrics["roc_auc"] > 0.97
    assert set(report.metrics) == {"loss", "accuracy", "precision", "recall", "f1", "roc_auc"}

    endpoint = deploy(
        DeploySpec.parse({"version": "breast-cancer@champion", "resources": {"cpus": 0.5}}), settings=settings
    )
    served.append("breast-cancer")
    data = load_breast_cancer()
    rows = [dict(zip(data.feature_names, map(float, values), strict=True)) for values in data.data[:100]]
    answers = ask(endpoint.url, "/v1/models/breast-cancer/predict", {"instances": rows})["predictions"]
    right = [
        answer["label"] == data.target_names[label] for answer, label in zip(answers, data.target[:100], strict=True)
    ]
    assert np.mean(right) > 0.93
    assert answers[0]["scores"].keys() == {"benign", "malignant"}
    assert sum(answers[0]["scores"].values()) == pytest.approx(1, abs=1e-5)
    wrong = {"mean radius": "wide"}
    refused = ask(endpoint.url, "/v1/models/breast-cancer/predict", {"instances": [rows[0], wrong]}, 400)["error"]
    assert refused["param"] == "instances[1].mean radius"


@pytest.mark.slow
def test_three_classes_by_a_perceptron(settings: Settings, tmp_path: Path) -> None:
    dataset = prepared("wine", tmp_path, settings)
    assert dataset.task.labels == ["class_0", "class_1", "class_2"]  # type: ignore[attr-defined]
    version = train(TrainSpec.from_yaml(SPECS / "wine-train.yaml"), settings=settings)
    assert version.metrics["test/accuracy"] > 0.9
    assert version.metrics["test/f1"] > 0.9
