"""Tasks and networks by import path: trained, saved and served, with their values checked."""

import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from maas_ray.errors import (
    InvalidError,
    RequestError,
    SpecError,
    UnlearntError,
)
from maas_ray.evaluation.tables import details
from maas_ray.own import Tensor
from maas_ray.serve.engines import network
from maas_ray.serve.spec import ServingOptions
from maas_ray.tasks import load_task
from maas_ray.training.spec import TrainSpec
from tests.support.custom import CODE, ROWS, fitted, fitted_on, prepare_spec, save_bundle
from tests.support.errors import raises


def test_a_custom_task_and_network_train_save_and_serve(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    task = fitted(prepare_spec())
    directory = save_bundle(task, here / "bundle", hidden=8)

    assert sorted(path.name for path in (directory / "source").rglob("*.py")) == ["mine.py"]
    (here / "mine.py").unlink()
    monkeypatch.setenv("MAAS_TRUST_REMOTE_CODE", "1")
    loaded = load_task(directory)
    assert loaded.spec == task.spec
    model, _ = network.load(loaded, directory, ServingOptions())
    (answer,) = network.answers(loaded, model, [loaded.to_inputs(loaded.request(x=[0.5, 0.5]))])
    said = loaded.to_answer(answer).model_dump()
    assert said["kind"] in ("a", "b")
    assert sum(said["scores"]) == pytest.approx(1)

    stored = loaded.encode([loaded.spec.parse_row(row) for row in ROWS])
    batch = loaded.collate(stored)
    outcomes = loaded.outcomes(loaded.load_model(directory), batch)
    assert outcomes["scores"].shape == (2, 2)
    assert outcomes["label"].tolist() == [0, 1]
    assert set(loaded.metrics(outcomes)) >= {"loss", "accuracy", "f1"}
    bf16 = loaded.load_model(directory).to(torch.bfloat16)
    assert loaded.loss(bf16, batch).dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("bool", "False", False),
        ("int64", "-3", -3),
        ("float32", "2.5", 2.5),
        ("float64", Decimal("2.5"), 2.5),
        ("float32", 2, 2.0),
        ("uint8", np.uint8(7), 7),
        ("int32", ["1", "2"], [1, 2]),
        ("float32", np.array([1.5, 2.0]), [1.5, 2.0]),
    ],
)
def test_a_tensor_parses_values_and_texts_that_spell_them(dtype: str, value: Any, expected: Any) -> None:
    found = Tensor(dtype, (2,) if isinstance(expected, list) else ()).parse("x", value)

    assert (found.dtype.name, found.tolist()) == (dtype, expected)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int64", 3.7),
        ("int64", "3.7"),
        ("int64", 1 << 63),
        ("int32", True),
        ("uint8", 300),
        ("uint8", 300.0),
        ("uint8", -1),
        ("bool", 3),
        ("bool", "maybe"),
        ("float32", float("nan")),
        ("float32", "inf"),
        ("float32", 1e300),
        ("float32", True),
        ("float32", [1.0]),
    ],
)
def test_a_value_that_a_cast_would_change_is_refused(here: Path, dtype: str, value: Any) -> None:
    (here / "mine.py").write_text(CODE.replace('"x": Tensor("float32", (2,))', f'"x": Tensor("{dtype}")'))
    task = fitted_on(prepare_spec(), [{"x": "1", "kind": "a"}, {"x": "0", "kind": "b"}])

    code = "not_finite" if dtype == "float32" and not isinstance(value, bool | list) else "wrong_type"
    with raises(InvalidError, code, "x", dtype):
        task.spec.parse_row({"x": value, "kind": "a"})
    with pytest.raises((RequestError, ValidationError)):
        task.to_inputs(task.request(x=value))


def test_evaluation_has_a_row_for_each_class_by_its_name(here: Path) -> None:
    rows = [{"x": [0.0, 1.0], "kind": name} for name in ("ant", "bee", "cow")]
    task = fitted_on(prepare_spec(), rows)
    outcomes = {"label": np.array([1, 2, 1]), "scores": np.eye(3, dtype=np.float32)[[1, 2, 2]]}  # no ant among them

    found = details(outcomes, task.class_names)

    assert [(row.label, row.support) for row in found.by_label] == [("ant", 0), ("bee", 2), ("cow", 1)]
    assert [row.label for row in details(outcomes, ()).by_label] == ["0", "1", "2"]


def test_an_empty_label_is_missing_and_an_unseen_one_named(here: Path) -> None:
    task = fitted(prepare_spec())

    assert task.spec.parse_row({"x": [0.0, 1.0], "kind": ""}) is None
    for name in ("", "c"):
        with raises(UnlearntError, "not_in_training", f"kind {name!r}"):
            task.encode([{"x": np.float32([0, 1]), "kind": name}])


def test_the_arguments_of_a_network_are_checked_against_its_signature(here: Path) -> None:
    def parse(**network: Any) -> TrainSpec:
        return TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": "mine:Net", **network}})

    assert parse().network.document() == {"type": "mine:Net", "hidden": 4, "bias": True}
    with raises(SpecError, "extra_forbidden", "network: hiden", "`hidden`"):
        parse(hiden=3)
    with raises(SpecError, "int_parsing", "network: hidden", "'many'"):
        parse(hidden="many")
    with raises(SpecError, "attribute_missing", "network: type", "mine", "'Nett'"):
        TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": "mine:Nett"}})


def test_a_task_by_import_path_is_a_task_like_any(here: Path) -> None:
    """A tenth task is one module, which is not registered anywhere."""
    module = Path(sys.modules["maas_ray.tasks.vision.classification"].__file__ or "").read_text()
    own = module.replace('type: Literal["image-classification"] = "image-classification"', "type: str")
    (here / "mine.py").write_text(own)

    spec = prepare_spec("mine:ImageClassification", image_size=8)
    dark, light = (np.full((8, 8), shade, np.uint8) for shade in (10, 240))
    rows = [spec.task.parse_row({"image": image, "label": name}) for image, name in ((dark, "dark"), (light, "light"))]
    task = spec.task.fit(row for row in rows if row is not None)
    task.save(here)

    assert load_task(here).spec == spec.task
    assert json.loads((here / "task.json").read_text())["source"] == spec.task.own_source.digest  # type: ignore[union-attr]
