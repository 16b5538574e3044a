"""Evaluation through the command line, on a cluster: scanned digits, a network that has learnt little and one that has
learnt more; what is found is computed again with scikit-learn."""

import base64
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from sklearn.datasets import load_digits

from maas_ray import EvaluateSpec, PrepareSpec, Registry, cli, prepare, storage
from maas_ray.cluster import connect
from maas_ray.data.dataset import PreparedDataset, RowGroup
from maas_ray.data.kept_columns import stored_columns, texts
from maas_ray.errors import DataError, SpecError
from maas_ray.evaluation.measure import measure
from maas_ray.evaluation.report import Report, find
from maas_ray.settings import Settings
from maas_ray.tasks import Task
from tests.support import bundles, datasets
from tests.support.errors import raises

pytestmark = pytest.mark.usefixtures("cluster")

ROWS = 1200
SCANNERS = ("Köln", "scanner with a very long name: " + "東" * 20, "")
LIGHT = ("--set", "cpus_per_worker=0.5", "--set", "resamples=200")
Run = Callable[..., tuple[Any, str, str]]


def spec_of(path: Path, **changes: Any) -> PrepareSpec:
    document = {
        "dataset": "scans",
        "task": {"type": "image-classification"},
        "sources": [{"format": "jsonl", "path": str(path), "encoding": "base64"}],
        "splits": {"validation": 0.1, "test": 0.3},
        "keep": ["scanner", "label"],
    }
    return PrepareSpec.parse(document | changes)


@pytest.fixture(scope="module")
def scans(settings: Settings, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """A dataset that keeps which scanner a digit is from, and what it is."""
    digits = load_digits()
    path = tmp_path_factory.mktemp("source") / "scans.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for number in range(ROWS):
            file = io.BytesIO()
            Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8)).save(file, "png")
            row = {"image": base64.b64encode(file.getvalue()).decode(), "label": str(digits.target[number])}
            print(json.dumps(row | {"scanner": SCANNERS[number % 3] or None}), file=lines)
    return prepare(spec_of(path), settings=settings)


@pytest.fixture(scope="module")
def versions(settings: Settings, scans: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two versions of `reader`: of three steps of training, and of sixty."""
    found = []
    for steps in (3, 60):
        directory = tmp_path_factory.mktemp("bundle")
        bundles.save_bundle(scans.task, directory)
        learn(scans, directory, steps)
        bundle = bundles.publish_saved(settings, "reader", scans.task, directory)
        found.append(Registry(settings).register(bundle).reference)
    return found


def learn(dataset: PreparedDataset, directory: Path, steps: int) -> None:
    """Train the network that lies in a directory, in this process."""
    import torch
    from safetensors.torch import save_file

    task = dataset.task
    model = task.load_model(directory).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    batches = list(dataset.batches(dataset.row_groups("train"), 64))
    for step in range(steps):
        optimizer.zero_grad()
        task.loss(model, task.collate(batches[step % len(batches)])).backward()
        optimizer.step()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `maas` in this process: exit status, standard output, standard error."""

    def call(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["maas", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return call


def answers(settings: Settings, reference: str, dataset: PreparedDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and scanners of the test split, by a plain loop in this process."""
    import torch

    bundle = Registry(settings).resolve(reference).open()
    model = dataset.task.load_model(bundle.fetch())
    rows = next(dataset.batches(dataset.row_groups("test"), 10_000, kept=["scanner"]))
    with torch.inference_mode():
        logits = model(pixel_values=torch.from_numpy(rows["pixel_values"]))
    (name,) = stored_columns(["scanner"])
    return rows["label"], logits.softmax(-1).numpy(), texts(rows[name])


def test_all_that_an_evaluation_finds(
    run: Run, settings: Settings, scans: PreparedDataset, versions: list[str]
) -> None:
    first, second = versions
    against = ("--slice", "scanner", "--against", first)

    status, out, err = run("evaluate", second, "scans", *against, "--json", *LIGHT)

    assert status == 0, err
    found = Report.parse(json.loads(out))
    label, scores, scanner = answers(settings, second, scans)
    said = scores.argmax(1)
    right = said == label
    assert found.metrics["accuracy"] == pytest.approx(metrics.accuracy_score(label, said))
    assert found.metrics["f1"] == pytest.approx(metrics.f1_score(label, said, average="macro"))
    assert found.metrics["accuracy"] > 0.7
    for name, (low, high) in found.intervals.items():
        assert low <= found.metrics[name] <= high, name
    standard_error = right.std() / np.sqrt(len(right))
    low, high = found.intervals["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.25)
    assert found.details.confusion is not None
    assert np.array_equal(found.details.confusion.counts, metrics.confusion_matrix(label, said))
    assert [row.support for row in found.details.by_label] == np.bincount(label).tolist()

    # Slices are of the rows that share a value, whatever it is; a long one is cut between characters.
    slices = {one.value: one for one in found.slices["scanner"]}
    assert set(slices) == {"Köln", "", ("scanner with a very long name: " + "東" * 11)}
    assert sum(one.rows for one in slices.values()) == found.rows == len(label)
    for value, one in slices.items():
        assert one.metrics["accuracy"] == pytest.approx(right[scanner == value].mean())

    # Both versions saw the same rows.
    assert found.comparison is not None
    other_label, other_scores, _ = answers(settings, first, scans)
    other_right = other_scores.argmax(1) == other_label
    accuracy = found.comparison.metrics["accuracy"]
    assert (found.comparison.against, accuracy.second) == (first, pytest.approx(other_right.mean()))
    assert accuracy.difference == pytest.approx(right.mean() - other_right.mean())
    assert accuracy.p is not None
    assert accuracy.p < 0.05
    assert found.comparison.mcnemar is not None
    assert found.comparison.mcnemar < 0.01

    # It is kept with the version, and shown with it.
    report, plots = find(found.uri)
    assert report == found
    assert plots == ["calibration.png", "confusion.png", "slices-0.png"]
    for name in plots:
        Image.open(io.BytesIO(storage.read_bytes(storage.join(found.uri, name)))).verify()
    status, shown, err = run("models", second)
    assert status == 0, err
    for words in ("CLASS", "95 % INTERVAL", "Köln", first, "McNemar", "confusion.png"):
        assert words in shown
    (document,) = json.loads(run("models", second, "--json")[1])
    assert document["evaluations"][0]["metrics"] == found.metrics


def test_an_alias_moves_where_a_gate_lets_it(run: Run, settings: Settings, versions: list[str]) -> None:
    first, second = versions
    for version in versions:
        assert run("evaluate", version, "scans", *LIGHT)[0] == 0
    number = {version: version.partition("/")[2] for version in versions}

    status, out, _ = run("alias", "reader", number[first], "best", "--if", "accuracy >= best")
    assert (status, out.splitlines()[-1]) == (0, f"reader@best is now {first}")
    status, out, _ = run("alias", "reader", number[second], "best", "--if", "accuracy > best", "--if", "loss < best")
    assert status == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "gate accuracy > best",
        "gate loss < best",
        f"reader@best is now {second}",
    ]
    status, out, err = run("promote", first, "best", "--if", "accuracy >= best - 0.005")
    assert (status, out) == (1, "")
    assert err.startswith(f"reader@best does not move to {first}:\ngate accuracy >= best - 0.005: NOT passed, {first}")
    assert Registry(settings).resolve("reader@best").reference == second
    assert run("promote", first, "best", "--if", "accuracy >= best * 0.1")[0] == 0
    assert run("alias", "reader", number[first], "best", "--if", "accuracy")[0] == 2


def test_what_cannot_be_measured_is_refused(
    run: Run, settings: Settings, scans: PreparedDataset, versions: list[str], tmp_path: Path
) -> None:
    bundles.register(settings, "others", bundles.image_task(("a", "b")), tmp_path / "others", alias=None)

    status, _, err = run("evaluate", versions[0], "scans", "--against", "others/1", *LIGHT)
    assert status == 1
    assert "dataset scans was prepared with other features than those of others/1 (task.json differ)" in err
    status, _, err = run("evaluate", versions[0], "scans", "--slice", "weather", *LIGHT)
    assert status == 1
    assert "did not keep the column 'weather'; kept columns: scanner, label. Prepare it with `keep: [" in err
    status, _, err = run("evaluate", versions[0], *LIGHT)
    assert status == 1
    assert versions[0] in err
    assert "name one with `dataset`" in err
    assert run("evaluate", "nobody/1", "scans")[0] == 1


def test_columns_to_keep_change_nothing_else(settings: Settings, scans: PreparedDataset, tmp_path: Path) -> None:
    source = PrepareSpec.parse(scans.meta.spec).sources[0].path
    without = prepare(spec_of(Path(source), keep=[]), settings=Settings(home=str(tmp_path)))

    assert without.fingerprint != scans.fingerprint
    assert without.columns == scans.columns
    for split in ("train", "test"):
        one, other = (next(some.batches(some.row_groups(split), 10_000)) for some in (scans, without))
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    rows = next(scans.batches(scans.row_groups("test"), 10_000, kept=["label"]))
    labels = texts(rows["keep/label"])
    assert [scans.task.labels[place] for place in rows["label"]] == labels.tolist()  # type: ignore[attr-defined]


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": "eA==", "label": "a", "tags": ["a"]}\n')

    for changes, code, values in (
        ({"keep": ["image"]}, "keep_unsupported", ["keep: 'image'"]),
        (
            {"sources": [{"format": "image-folder", "path": "x"}]},
            "column_missing",
            ["keep: sources[0]", "image-folder"],
        ),
        ({"task": {"type": "text-generation"}, "keep": ["author"]}, "keep_unsupported", ["keep: text-generation"]),
    ):
        with raises(SpecError, code, *values):
            spec_of(tmp_path / "rows.jsonl", **changes)
    with pytest.raises(DataError, match="has no column 'scanner'"):
        prepare(spec_of(tmp_path / "rows.jsonl"), settings=Settings(home=str(tmp_path)))
    with pytest.raises(DataError, match="tags, a column to keep, holds a list"):
        prepare(spec_of(tmp_path / "rows.jsonl", keep=["tags"]), settings=Settings(home=str(tmp_path)))


class DeadlyOnce(PreparedDataset):
    """A dataset, reading which kills the process the first time."""

    mark = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _deadly, (self.artifact, self.mark)

    def batches(self, groups: list[RowGroup], *some: Any, **named: Any) -> Iterator[dict[str, np.ndarray]]:
        if groups[0].start and not os.path.exists(self.mark):
            Path(self.mark).touch()
            os._exit(1)
        return super().batches(groups, *some, **named)


def _deadly(artifact: Any, mark: str) -> DeadlyOnce:
    dataset = DeadlyOnce(artifact)
    dataset.mark = mark
    return dataset


def test_a_killed_actor_costs_no_row(settings: Settings, tmp_path: Path) -> None:
    from ray import cloudpickle

    dataset = datasets.text_dataset(settings, "deadly")
    version = bundles.register(settings, "deadly", dataset.task, tmp_path / "bundle", alias=None)
    spec = EvaluateSpec(version=version.reference, split="train", cpus_per_worker=0.5)
    connect(settings)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        calm = measure(spec, version.open(), dataset, "calm")
        deadly = measure(spec, version.open(), _deadly(dataset.artifact, str(tmp_path / "mark")), "deadly")
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])

    assert (tmp_path / "mark").exists()
    for name, values in calm.outcomes.items():
        assert np.array_equal(values, deadly.outcomes[name]), name
    task: Task = dataset.task
    assert {"loss", "bits_per_byte"} <= task.metrics(calm.outcomes).keys()
