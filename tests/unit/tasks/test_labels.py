"""One class has one name, whatever task, file and type it comes from."""

import io
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maas_ray.errors import InvalidError
from maas_ray.own import Label, ModuleTask, Tensor
from maas_ray.tasks import TaskSpec
from maas_ray.tasks.tables.classification import TabularClassification, TabularClassificationSpec
from maas_ray.tasks.tables.features import CategoryColumn, TableFeatures
from maas_ray.tasks.text.classification import TextClassificationSpec
from maas_ray.tasks.text.embeddings import FeatureExtractionSpec
from maas_ray.tasks.text.generation import TextGenerationSpec
from maas_ray.tasks.text.token_classification import TokenClassificationSpec
from maas_ray.tasks.vision.classification import ImageClassificationSpec
from tests.support.errors import raises


def png() -> bytes:
    data = io.BytesIO()
    Image.new("L", (2, 2)).save(data, "PNG")
    return data.getvalue()


class Kind(ModuleTask):
    features = {"x": Tensor("float32", ())}
    targets = {"kind": Label()}
    answers = {"kind": Tensor("str")}

    def row_loss(self, output: Any, **targets: Any) -> Any: ...

    def decode(self, output: Any) -> Any: ...


TASKS: dict[str, tuple[TaskSpec, dict[str, Any], str, str]] = {
    "own": (Kind.spec_type.parse({"type": "here:Kind"}), {"x": 1.0}, "kind", "kind"),
    "text": (TextClassificationSpec(), {"text": "x"}, "label", "label"),
    "image": (ImageClassificationSpec(), {"image": png()}, "label", "label"),
    "table": (TabularClassificationSpec(target="y", features=("x",)), {"x": 1}, "y", "target"),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((1, 1.0, "1", "1.0", " 1 ", b"1", np.float32(1).item(), Decimal("1.00")), "1"),
        ((True, "true", "True", b"TRUE"), "true"),
        ((0.5, "0.5"), "0.5"),
        (("caf\u00e9", "cafe\u0301", "cafe\u0301".encode()), "caf\u00e9"),  # as macOS writes names of files
        (("pos", b"pos", "pos "), "pos"),
        (("007",), "007"),
        (("nan", b"nan", " nan"), "nan"),  # Min Nan in ISO 639
        ((12345678901234567890, "12345678901234567890"), "12345678901234567890"),
    ],
)
def test_a_label_has_one_name_in_all_types(task: str, values: tuple[Any, ...], name: str) -> None:
    spec, row, column, parsed = TASKS[task]
    rows = [spec.parse_row(row | {column: value}) for value in values]
    assert [found and found[parsed] for found in rows] == [name] * len(values)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("missing", [None, float("nan"), Decimal("nan"), "", " ", b""])
def test_a_row_whose_label_is_missing_is_empty(task: str, missing: Any) -> None:
    spec, row, column, _ = TASKS[task]
    assert spec.parse_row(row | {column: missing}) is None


@pytest.mark.parametrize("task", TASKS)
def test_a_label_that_is_no_name_is_refused(task: str) -> None:
    spec, row, column, _ = TASKS[task]
    for value, code in (([1], "wrong_type"), ({"a": 1}, "wrong_type"), (b"\xff", "not_text")):
        with raises(InvalidError, code, column if task == "table" else "the label is"):
            spec.parse_row(row | {column: value})


def test_tags_are_named_as_labels_are() -> None:
    spec = TokenClassificationSpec()
    for tags in (["1", "2"], [1, 2], [1.0, 2.0], [b"1", b"2"]):
        assert spec.parse_row({"tokens": ["a", "b"], "tags": tags}) == {"tokens": ["a", "b"], "tags": ["1", "2"]}
    with raises(InvalidError, "tag_missing"):
        spec.parse_row({"tokens": ["a", "b"], "tags": ["1", None]})


def test_a_text_in_bytes_is_read_by_every_task_on_text() -> None:
    """Parquet without the annotation of text has bytes, from Impala and old Spark among others."""
    text = "Grüße"
    for spec, row in (
        (TextClassificationSpec(), {"text": text, "label": "a"}),
        (TextGenerationSpec(), {"text": text}),
        (FeatureExtractionSpec(), {"anchor": text, "positive": text}),
    ):
        assert spec.parse_row({name: value.encode() for name, value in row.items()}) == row
        with raises(InvalidError, "not_utf_8", "0xff"):
            spec.parse_row(row | {spec.inputs[0]: b"\xff"})


def test_a_task_from_before_knows_its_labels_and_categories_in_nfc() -> None:
    categories = CategoryColumn(name="x", categories=["tea", "cafe\u0301"], fill=None)
    features = TableFeatures(order=["x"], numbers=[], categories=[categories])
    task = TabularClassification(TabularClassificationSpec(target="y"), features, ["tea", "cafe\u0301"])
    rows = [{"features": {"x": name}, "target": name} for name in ("caf\u00e9", "cafe\u0301", "tea")]

    encoded = task.encode(rows)
    assert encoded["label"].tolist() == [1, 1, 0]
    assert encoded["categories"].tolist() == [[2], [2], [1]]
