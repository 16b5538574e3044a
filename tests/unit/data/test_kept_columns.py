"""Columns that are kept: as text of a fixed size, and without a say in anything else."""

import json
from pathlib import Path

import numpy as np
import pytest

from maas_ray.data.kept_columns import BYTES, columns_to_read, kept, stored_columns, texts
from maas_ray.data.pipeline import packing, row_steps
from maas_ray.data.pipeline.objects import packed
from maas_ray.data.pipeline.read_rows import Reading, read_rows
from maas_ray.data.reading import Part, inspect
from maas_ray.data.sources import JsonlSource, list_files
from maas_ray.data.splits.spec import Splits
from maas_ray.errors import InvalidError
from maas_ray.tasks.tables.regression import TabularRegressionSpec
from tests.support.errors import raises
from tests.unit.data.pipeline.test_packing import settle


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Köln", "Köln"),
        (None, ""),
        ("", ""),
        (7, "7"),
        (0.25, "0.25"),
        (True, "true"),
        (b"K\xc3\xb6ln", "Köln"),
        (7.0, "7"),
        ("a\0b", "ab"),
        ("\ud800", "?"),
        ("東" * 30, "東" * 21),
        ("x" * 65, "x" * 64),
    ],
)
def test_a_kept_value_is_stored_as_text_of_fixed_length(value: object, text: str) -> None:
    (stored,) = kept({"keep/a": value}, ["a"]).values()

    assert len(stored) == BYTES
    assert texts(np.frombuffer(stored, np.uint8)[None]).tolist() == [text]


@pytest.mark.parametrize("value", [b"\xff", ["a"], {"a": 1}, (1,)])
def test_a_kept_value_that_cannot_be_grouped_by_is_refused(value: object) -> None:
    with raises(InvalidError, "keep_unsupported", "a, ", type(value).__name__):
        kept({"keep/a": value}, ["a"])


def test_kept_columns_are_read_under_names_of_their_own() -> None:
    assert columns_to_read(("image", "label"), ("label", "scanner")) == ("image", "label", "keep/label", "keep/scanner")


def test_a_task_on_all_columns_also_learns_from_kept_columns(tmp_path: Path) -> None:
    rows = [{"size": number, "town": ("Ulm", "Köln")[number % 2], "price": 2 * number} for number in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, spec = JsonlSource(path=str(path)), TabularRegressionSpec(target="price")
    keep = ("town", "price")
    (file,) = list_files(source)
    parts = packed([(0, Part(source, inspect(source, file, columns_to_read(spec.columns, keep))))])

    (table,) = [table for table in read_rows(parts, Reading(spec, Splits(validation=0, test=0), keep)) if len(table)]
    found = list(row_steps.kept_rows(row_steps.in_order(settle(table)), spec, keep))
    task = spec.fit([one.row for one in found])
    (chunk,) = packing.encode(settle(table), packing.saved(task), spec, keep)

    towns, prices = (
        texts(np.frombuffer(chunk[name][0].as_py(), np.uint8).reshape(-1, BYTES)) for name in stored_columns(keep)
    )
    assert chunk["rows"].to_pylist() == [8]
    for one, town, price in zip(found, towns, prices, strict=True):
        assert one.row["features"]["town"] == town
        assert float(price) == one.row["target"]
    assert sorted(towns) == ["Köln"] * 4 + ["Ulm"] * 4
