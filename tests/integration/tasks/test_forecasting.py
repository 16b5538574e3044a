"""Series from a table to forecasts, by the specs that users have."""

import csv
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from maas_ray import DeploySpec, EvaluateSpec, PrepareSpec, TrainSpec, deploy, evaluate, prepare, train, undeploy
from maas_ray.data.dataset import PreparedDataset
from maas_ray.sample_data import SAMPLES
from maas_ray.settings import Settings
from tests.support import ROOT

SPECS = ROOT / "jobs/specs"

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def lines(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedDataset, Path]:
    """The prepared dataset, and the table it was made of."""
    path = SAMPLES["lines"](tmp_path_factory.mktemp("lines"))
    spec = PrepareSpec.from_yaml(SPECS / "lines-prepare.yaml", [f"sources.0.path={path}", "task.stride=8"])
    return prepare(spec, settings=settings), path


@pytest.fixture
def champion(settings: Settings, lines: tuple[PreparedDataset, Path]) -> Iterator[str]:
    train(TrainSpec.from_yaml(SPECS / "lines-train.yaml", ["epochs=1", "learning_rate=1e-2"]), settings=settings)
    yield "lines@champion"
    undeploy("lines", settings=settings)


def windows(dataset: PreparedDataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    batches = list(dataset.read(dataset.row_groups(split)))
    return np.concatenate([batch["context"] for batch in batches]), np.concatenate(
        [batch["target"] for batch in batches]
    )


def test_forecasting(settings: Settings, lines: tuple[PreparedDataset, Path], champion: str) -> None:
    dataset, path = lines
    with path.open() as file:
        rows = [(row["file"], float(row["indent"]), float(row["characters"])) for row in csv.DictReader(file)]
    files = [np.array([row[1:] for row in some]) for _, some in groupby(rows, key=lambda row: row[0])]
    assert dataset.meta.counts.adds_up()
    assert dataset.meta.counts.read == len(rows)
    held_out = [round(0.1 * len(steps)) for steps in files]
    expected = sum(max(0, (count - 24 - 4) // 8 + 1) for count in held_out)
    assert dataset.split("test").rows == expected > 500

    report = evaluate(
        EvaluateSpec(version=champion, resamples=20, batch_size=256, cpus_per_worker=0.5), settings=settings
    )
    context, target = windows(dataset, "test")
    naive = ((context[:, -1, :1] - target) ** 2).mean()
    mean = ((windows(dataset, "train")[1].mean() - target) ** 2).mean()
    assert report.metrics["mse"] < 0.85 * min(naive, mean)
    assert report.metrics["r2"] > 0.15
    assert set(report.metrics) == {"loss", "mse", "mae", "r2", "mase"}

    endpoint = deploy(
        DeploySpec.parse({"version": champion, "resources": {"cpus": 0.5}, "scaling": {"max_replicas": 1}}),
        settings=settings,
    )

    def ask(path: str, body: Any, status: int = 200) -> Any:
        answer = httpx.post(f"{endpoint.url}{path}", json=body, timeout=60)
        assert answer.status_code == status, answer.text
        return answer.json()

    instances = [{"values": values.tolist()} for values in context[:200]]
    answers = ask("/v1/models/lines/predict", {"instances": instances})["predictions"]
    said = np.array([answer["forecast"] for answer in answers])
    assert ((said - target[:200]) ** 2).mean() < min(naive, mean)
    longer = {"values": [[0, 0]] * 100 + instances[0]["values"]}
    assert ask("/v1/models/lines/predict", longer)["forecast"] == pytest.approx(answers[0]["forecast"])
    gap = {"values": [*instances[0]["values"][:5], [None, 40], *instances[0]["values"][6:]]}
    assert np.isfinite(ask("/v1/models/lines/predict", gap)["forecast"]).all()
    refused = ask("/v1/models/lines/predict", {"values": instances[0]["values"][1:]}, 400)["error"]
    assert refused["code"] == "invalid_value"
    assert all(part in refused["message"] for part in ("values: ", "23 steps", "24"))

    tensor = {"name": "values", "datatype": "FP64", "shape": [1, 24, 2], "data": context[0].ravel().tolist()}
    [output] = ask("/v2/models/lines/infer", {"inputs": [tensor]})["outputs"]
    assert output["shape"] == [1, 4]
    assert output["data"] == pytest.approx(answers[0]["forecast"])
