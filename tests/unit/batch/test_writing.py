"""The output of a batch prediction: its columns, its pieces and its end."""

import math
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maas_ray import storage
from maas_ray.batch import counts as counts_of
from maas_ray.batch import plan, run, writing
from maas_ray.data import reading
from maas_ray.data.sources import ParquetSource
from maas_ray.errors import ConflictError, CorruptError, InvalidError
from maas_ray.tasks import AnswerRow
from tests.support.batch import inspected
from tests.support.errors import raises


class _Part(AnswerRow):
    name: str
    start: int


class _Answer(AnswerRow):
    label: str
    scores: dict[str, float]
    parts: list[_Part]
    sure: bool | None
    kind: Literal["a", "b"]
    vector: list[float]


def test_answers_have_columns_of_their_own_types() -> None:
    schema = writing.schema_of(_Answer, {"label": pa.int64(), "id": pa.int64(), "path": pa.string()})

    assert schema.names == ["path", "position", "input_label", "id", "input_path", *_Answer.model_fields]
    empty = _Answer(label="x", scores={}, parts=[], sure=None, kind="a", vector=[])
    full = _Answer(
        label="y", scores={"y": 1.0}, parts=[_Part(name="p", start=3)], sure=True, kind="b", vector=[1.0, 2.0]
    )
    rows = [writing.answer_values(one, schema) for one in (empty, full)]
    back = pa.Table.from_pylist(rows, schema).to_pylist()
    assert back[0]["parts"] == []
    assert back[1]["parts"] == [{"name": "p", "start": 3}]
    assert back[1]["scores"] == [{"key": "y", "value": 1.0}]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("x", pa.int64()),
        (2.75, pa.int64()),  # Arrow itself would write 2
        ([1, 2.75], pa.list_(pa.int64())),
        ({"a": 1, "b": 2}, pa.struct([("a", pa.int64())])),
        (datetime(2026, 1, 2, 3, 4), pa.date32()),
    ],
)
def test_a_value_that_would_be_another_one_is_refused(value: Any, kind: pa.DataType) -> None:
    with raises(InvalidError, "type_differs", repr(str(value)[:80]), kind):
        writing.fitted(value, kind)


def test_values_that_fit_are_as_they_were() -> None:
    assert writing.fitted(2.0, pa.int64()) == 2
    assert writing.fitted(3, pa.float64()) == 3
    assert math.isnan(writing.fitted(math.nan, pa.float64()))
    assert writing.fitted({"a": 1}, pa.struct([("a", pa.int64()), ("b", pa.int64())])) == {"a": 1, "b": None}
    (moment,) = pa.array([1577836800000000001], pa.timestamp("ns")).to_pylist()
    (kind,) = plan.kept_types([{"when": moment}], None).values()
    assert writing.fitted(moment, kind) == moment


def test_columns_of_the_input_never_share_a_name() -> None:
    kept = dict.fromkeys(("path", "input_path", "label", "id"), pa.int64())

    assert writing.output_names(kept, _Answer.model_fields) == {
        "path": "input_input_path",
        "input_path": "input_path",
        "label": "input_label",
        "id": "id",
    }
    assert len(writing.schema_of(_Answer, kept)) == 2 + len(kept) + len(_Answer.model_fields)


def _written(uri: str, quarantined: int = 1) -> None:
    with writing.Output(uri, "part-1", pa.schema([("text", pa.string())])) as output:
        output.write([{"text": f"answer {n}"} for n in range(100)])
        place: dict[str, Any] = {"path": "a", "position": 4, "rows": quarantined, "error": "bad", "excerpt": b"x"}
        output.quarantine([place] if quarantined else [])
        output.commit()


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_whole_piece_is_finished(tmp_path: Path, scheme: str) -> None:
    uri = f"{scheme}{tmp_path}/out"
    assert writing.finished(uri, "part-1") is None
    _written(uri)

    entries, counts = writing.finished(uri, "part-1") or ([], {})

    assert (counts["rows"], counts["quarantined"], counts["errors"]) == (100, 1, {"bad": 1})
    assert [entry.path for entry in entries] == ["part-1.parquet", "quarantine/part-1.parquet"]
    storage.verify(uri, entries[:1])
    storage.verify(writing.about(uri), entries[1:])


@pytest.mark.parametrize("damage", ["cut", "flipped", "no quarantine"])
def test_a_damaged_piece_is_not_finished(tmp_path: Path, damage: str) -> None:
    uri = tmp_path / "out"
    _written(str(uri))
    path = uri / "part-1.parquet"
    content = bytearray(path.read_bytes())
    if damage == "no quarantine":
        (tmp_path / "out.prediction" / "quarantine" / "part-1.parquet").unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[60] ^= 1
        path.write_bytes(content)

    assert writing.finished(str(uri), "part-1") is None


def test_answers_of_small_batches_share_a_row_group(tmp_path: Path) -> None:
    """10,000 rows, or 32 MB: 21,000 rows of 7 bytes are three groups, and 50 of a megabyte each are two."""
    for name, value, batches in (("many", "answer", 3000), ("large", "x" * (1 << 20), 10)):
        with writing.Output(str(tmp_path), name, pa.schema([("text", pa.string())])) as output:
            for batch in range(batches):
                output.write([{"text": f"{value}{batch}"}] * (7 if name == "many" else 5))
            output.commit()
    many, large = (pq.ParquetFile(tmp_path / f"{name}.parquet") for name in ("many", "large"))
    rows = [many.metadata.row_group(group).num_rows for group in range(many.num_row_groups)]
    assert (sum(rows), len(rows), large.num_row_groups) == (21_000, 3, 2)
    assert many.read()["text"].to_pylist() == [f"answer{batch}" for batch in range(3000) for _ in range(7)]


class _Told(AnswerRow):
    label: str
    scores: dict[str, float]
    parts: list[dict[str, int]] | None
    embedding: list[float]


@pytest.mark.filterwarnings("ignore")  # the readers warn about each other
def test_the_output_is_a_data_set_for_every_reader(tmp_path: Path) -> None:
    import datasets
    import pandas as pd
    import polars as pl
    from pyarrow import dataset

    uri = str(tmp_path / "out")
    document = {"version": "m/1"}
    run._begin(uri, document)
    schema, counts = writing.schema_of(_Told, {"name": pa.string()}), counts_of.Counts()
    for name in ("part-1", "part-2"):
        with writing.Output(uri, name, schema) as output:
            answer = _Told(label="a", scores={"a": 0.75, "b": 0.25}, parts=[{"x": 1}], embedding=[0.5, 2])
            origin = {"path": "in.csv", "position": 3, "name": name}
            output.write([origin | writing.answer_values(answer, schema)] * 4)
            output.quarantine([{"path": "in.csv", "position": 9, "rows": 1, "error": "bad", "excerpt": b"x"}])
            counts.add(output.commit(), output.counts())
    run._commit(uri, document, counts)

    source = ParquetSource(path=uri)
    parts = [reading.Part(source, file, range(len(file.groups))) for file in inspected(source, ("label",))]
    read = [
        pd.read_parquet(uri)["label"].tolist(),
        pq.read_table(uri)["label"].to_pylist(),
        dataset.dataset(uri).to_table()["label"].to_pylist(),
        pl.read_parquet(uri)["label"].to_list(),
        pl.scan_parquet(uri).collect()["label"].to_list(),
        datasets.load_dataset(uri, cache_dir=str(tmp_path / "cache"))["train"]["label"][:],
        datasets.load_dataset("parquet", data_dir=uri, cache_dir=str(tmp_path / "cache"))["train"]["label"][:],
        [raw.row["label"] for part in parts for raw in reading.read(part, ("label",)) if raw.row],
    ]
    assert read == [["a"] * 8] * len(read)
    row = pq.read_table(uri).to_pylist()[0]
    assert row["scores"] == [{"key": "a", "value": 0.75}, {"key": "b", "value": 0.25}]
    assert (row["parts"], row["embedding"], row["name"]) == ([[{"key": "x", "value": 1}]], [0.5, 2], "part-1")

    assert run._begin(uri, document) == run.Predictions(uri, "m/1", 8, 2)
    (tmp_path / "out" / "part-2.parquet").write_bytes(b"")
    with raises(CorruptError, "size_differs", "part-2.parquet"):
        run._begin(uri, document)


def test_an_output_of_an_earlier_version_is_complete_or_refused(tmp_path: Path) -> None:
    uri, document = str(tmp_path / "out"), {"version": "m/1"}
    storage.write_json(f"{uri}/prediction.json", document)
    with raises(ConflictError, "output_of_earlier_version", uri):
        run._begin(uri, document)
    storage.commit(uri, run.KIND, (), {"prediction": document, "rows": 5, "quarantined": 1})
    assert run._begin(uri, document) == run.Predictions(uri, "m/1", 5, 1)
    with raises(ConflictError, "output_of_earlier_version", uri):
        run._begin(uri, document | {"version": "m/2"})


def test_an_output_belongs_to_one_prediction(tmp_path: Path) -> None:
    uri = str(tmp_path / "out")
    document = {"version": "m/1", "keep": None}
    assert run._begin(uri, document) is None
    assert run._begin(uri, document) is None  # after a crash
    with raises(ConflictError, "output_of_another_prediction", uri, "version (m/1, now m/2)"):
        run._begin(uri, document | {"version": "m/2"})
    run._commit(uri, document, counts_of.Counts())

    assert run._begin(uri, document) == run.Predictions(uri, "m/1", 0, 0)
    storage.write_json(f"{tmp_path}/new.prediction/notes.json", {})
    with raises(ConflictError, "output_not_empty", "new.prediction", "notes.json"):
        run._begin(f"{tmp_path}/new", document)
