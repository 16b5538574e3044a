"""Options of writers that change the meaning of a file, and the values that they must give."""

import datetime as dt
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import webdataset

from maas_ray.tasks.rows import REST
from maas_ray.tasks.text.token_classification import TokenClassificationSpec
from tests.support.sources import problem_of, raws, rows_of, source
from tests.unit.data.sources.test_formats import tar_of

LABEL = ("text", "label")


# --- Hugging Face's datasets -----------------------------------------------------------------------


@pytest.fixture
def reviews(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> datasets.Dataset:
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER", "I-PER"])),
            "about": {"topic": datasets.ClassLabel(names=["films", "food"]), "stars": datasets.Value("int64")},
        }
    )
    rows = {
        "text": ["bad", "good", "unknown"],
        "label": [0, 1, -1],
        "tags": [[0, 1, 2], [], [0]],
        "about": [{"topic": 1, "stars": 1}, {"topic": 0, "stars": 5}, None],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def named(rows: list[Any]) -> list[tuple[Any, ...]]:
    return [(row["label"], row["tags"], (row["about"] or {}).get("topic")) for row in rows]


NAMES = [("neg", ["O", "B-PER", "I-PER"], "food"), ("pos", [], "films"), (None, ["O"], None)]


def test_classes_of_datasets_have_their_names(tmp_path: Path, reviews: datasets.Dataset) -> None:
    columns = ("label", "tags", "about")
    reviews.to_parquet(tmp_path / "a.parquet")
    reviews.save_to_disk(tmp_path / "saved")

    assert named(rows_of(source(format="parquet", path=f"{tmp_path}/a.parquet"), columns)) == NAMES
    assert named(rows_of(source(format="arrow", path=f"{tmp_path}/saved"), columns)) == NAMES


def test_classes_are_named_by_dataset_info_if_the_schema_does_not(tmp_path: Path, reviews: datasets.Dataset) -> None:
    reviews.save_to_disk(tmp_path / "saved")
    (path,) = (tmp_path / "saved").glob("*.arrow")
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        table = reader.read_all().replace_schema_metadata(None)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    of = source(format="arrow", path=f"{tmp_path}/saved")

    assert named(rows_of(of, ("label", "tags", "about"))) == NAMES

    before = [of.stamp(file) for file in of.files()]
    info = json.loads((tmp_path / "saved/dataset_info.json").read_text())
    info["features"]["label"]["names"] = ["negative", "positive"]
    (tmp_path / "saved/dataset_info.json").write_text(json.dumps(info))
    assert [row["label"] for row in rows_of(of, ("label",))] == ["negative", "positive", None]
    assert [of.stamp(file) for file in of.files()] != before


def test_tags_of_datasets_are_learnt_by_name_or_by_number(tmp_path: Path) -> None:
    for features, tags in (
        (datasets.List(datasets.ClassLabel(names=["O", "B-PER"])), ["B-PER", "O"]),
        (datasets.List(datasets.Value("int64")), ["1", "0"]),
    ):
        kinds = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": features})
        rows = datasets.Dataset.from_dict({"tokens": [["Ann", "ran"]], "ner_tags": [[1, 0]]}, features=kinds)
        rows.to_parquet(tmp_path / "ner.parquet")
        of = source(format="parquet", path=f"{tmp_path}/ner.parquet", columns={"tags": "ner_tags"})
        (row,) = rows_of(of, ("tokens", "tags"))
        assert TokenClassificationSpec().parse_row(row) == {"tokens": ["Ann", "ran"], "tags": tags}


def test_a_class_without_a_name_is_an_error_of_its_row(tmp_path: Path, reviews: datasets.Dataset) -> None:
    table = reviews.data.table
    table = table.set_column(1, "label", pa.array([0, 2, 1])).replace_schema_metadata(table.schema.metadata)
    pq.write_table(table, tmp_path / "a.parquet")

    one, error, other = rows_of(source(format="parquet", path=f"{tmp_path}/a.parquet"), ("label",))

    assert (one, other) == ({"label": "neg"}, {"label": "pos"})
    assert "column 'label'" in error
    assert "class 2" in error


def test_the_index_that_datasets_take_from_pandas_is_not_a_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.5, 2.5, 3.5]}, index=[5, 1, 3])
    datasets.Dataset.from_pandas(frame).save_to_disk(tmp_path / "saved")
    assert rows_of(source(format="arrow", path=f"{tmp_path}/saved"), (REST,)) == [{REST: {"x": x}} for x in frame["x"]]


# --- pandas' index ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "jsonl"])
def test_an_index_is_read_only_by_its_name(tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame({"x": [1, 2, 3], "y": [2, 4, 6]}, index=pd.Index([9, 4, 7], name="row"))
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "arrow":
        pa.feather.write_feather(pa.Table.from_pandas(frame), str(path))
    elif kind == "csv":
        frame.rename_axis(None).to_csv(path)
    else:
        frame.rename_axis("Unnamed: 0").reset_index().to_json(path, orient="records", lines=True)
    of = source(format=kind, path=str(path))

    read = raws(of, (REST, "y"))
    assert [sorted(raw.row[REST]) for raw in read if raw.row] == [["x"]] * 3
    if kind in ("parquet", "arrow"):  # a named index may be missed
        assert [list(raw.notes.values()) for raw in read] == [[3], [], []]
        assert next(iter(read[0].notes)).startswith("row: the index of pandas is not read")

    if kind in ("parquet", "arrow"):
        assert rows_of(of, ("row", "y"))[0] == {"row": 9, "y": 2}
    if kind == "jsonl":
        assert rows_of(of, ("Unnamed: 0", "y"))[0] == {"Unnamed: 0": 9, "y": 2}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_column_that_stands_twice_in_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "a", "b"])
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a")
    else:
        pa.feather.write_feather(table, f"{tmp_path}/a")
    of = source(format=kind, path=f"{tmp_path}/a")
    assert "the column 'a' more than once" in problem_of(of, (REST, "b"))
    assert "the column 'a' more than once" in problem_of(of, ("a",))
    assert rows_of(of, ("b",)) == [{"b": 3}]


# --- dates -----------------------------------------------------------------------------------------

UTC_END = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)


def dates(kind: str, path: Path, column: pa.Array) -> list[Any]:
    table = pa.table({"text": ["a", "b"], "w": column})
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    return rows_of(source(format=kind, path=str(path)), ("text", REST))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_sentinels_in_other_zones_are_instants(tmp_path: Path, kind: str) -> None:
    seconds = int(UTC_END.timestamp())
    for zone, instant in (("Asia/Tokyo", seconds), ("No/Where", 0), ("America/New_York", -62135596800)):
        rows = dates(kind, tmp_path / "a", pa.array([instant, 0], pa.int64()).cast(pa.timestamp("s", zone)))
        epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
        assert [row[REST]["w"] for row in rows] == [epoch + dt.timedelta(seconds=instant), epoch]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("type_", [pa.timestamp("us"), pa.timestamp("ms"), pa.date32(), pa.list_(pa.timestamp("us"))])
def test_a_date_that_python_cannot_hold_costs_its_own_row(tmp_path: Path, kind: str, type_: Any) -> None:
    far = 10**17 if type_ != pa.date32() else 10**7
    values = pa.array([far, 0], pa.int64() if type_ != pa.date32() else pa.int32())
    column = pa.array([[far], [0]], pa.list_(pa.int64())).cast(type_) if pa.types.is_list(type_) else values.cast(type_)
    if type_ == pa.timestamp("us"):
        column = pa.array([10**18, 0], pa.int64()).cast(type_)
    if pa.types.is_list(type_):
        column = pa.array([[10**18], [0]], pa.list_(pa.int64())).cast(type_)

    error, row = dates(kind, tmp_path / "a", column)

    assert "column 'w' cannot be read" in error
    assert row["text"] == "b"
    # Without the column nothing is wrong with the row.
    assert rows_of(source(format=kind, path=f"{tmp_path}/a"), ("text", REST, "drop/w")) == [
        {"text": "a", REST: {}},
        {"text": "b", REST: {}},
    ]


def test_times_as_spark_writes_them_have_their_years(tmp_path: Path) -> None:
    """INT96 read in nanoseconds would give 1816."""
    times = [dt.datetime(9999, 12, 31), dt.datetime(2024, 2, 29, 12, 30)]
    table = pa.table({"text": ["a", "b"], "w": pa.array(times, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    rows = rows_of(source(format="parquet", path=f"{tmp_path}/a.parquet"), ("text", "w"))
    assert [row["w"] for row in rows] == times


# --- directories that are columns ------------------------------------------------------------------

PLACES = [{"x": 1, "country": "Côte d'Ivoire/CI", "year": 2024}, {"x": 2, "country": None, "year": 2025}]


def test_partitions_of_pandas_and_pyarrow_are_columns(tmp_path: Path) -> None:
    pd.DataFrame(PLACES).to_parquet(tmp_path / "hive", partition_cols=["country", "year"])
    of = source(format="parquet", path=f"{tmp_path}/hive")
    expected = [{"x": 1, "country": "Côte d'Ivoire/CI", "year": "2024"}, {"x": 2, "country": None, "year": "2025"}]

    assert sorted((row[REST] for row in rows_of(of, (REST,))), key=lambda row: row["x"]) == expected
    named = [{"country": row["country"], REST: {"x": row["x"]}} for row in expected]
    rows = rows_of(of, ("country", REST, "drop/year"))
    assert sorted(rows, key=lambda row: row[REST]["x"]) == named
    assert "no column 'town'" in problem_of(of, ("town",))


def test_partitions_of_polars_are_columns(tmp_path: Path) -> None:
    pl.DataFrame(PLACES).write_parquet(tmp_path / "hive", partition_by=["year"], mkdir=True)
    rows = rows_of(source(format="parquet", path=f"{tmp_path}/hive"), ("year", REST))
    assert [(row["year"], row[REST]["x"]) for row in rows] == [("2024", 1), ("2025", 2)]
    assert all("year" not in row[REST] for row in rows)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_partitions_of_text_formats_are_columns(tmp_path: Path, kind: str) -> None:
    for country in ("DE", "__HIVE_DEFAULT_PARTITION__"):
        directory = tmp_path / f"country={country}"
        directory.mkdir()
        frame = pd.DataFrame({"x": ["1"]})
        path = directory / f"part-0.{kind}"
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_json(path, orient="records", lines=True)
    rows = rows_of(source(format=kind, path=str(tmp_path)), ("country", REST))
    assert rows == [{"country": "DE", REST: {"x": "1"}}, {"country": None, REST: {"x": "1"}}]


# --- JSON lines ------------------------------------------------------------------------------------


def test_a_field_that_lines_leave_out_is_null_in_every_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1, "price": 3}\n')
    (tmp_path / "b.jsonl").write_text('{"a": 2, "b": 4.0, "price": 5}\n{"b": 6.0}\n')
    of = source(format="jsonl", path=str(tmp_path))

    assert rows_of(of, ("a", "b", "price")) == [
        {"a": 1, "b": None, "price": 3},
        {"a": 2, "b": 4.0, "price": 5},
        {"a": None, "b": 6.0, "price": None},
    ]
    assert rows_of(of, (REST, "price"))[0] == {REST: {"a": 1}, "price": 3}
    problem = problem_of(of, ("a", "c"))
    assert "no column 'c' (set `columns.c`); it has: " in problem
    assert "price" in problem


def test_an_absent_member_of_a_sample_is_null(tmp_path: Path) -> None:
    with webdataset.TarWriter(f"{tmp_path}/a.tar") as writer:
        writer.write({"__key__": "one", "txt": "first"})
        writer.write({"__key__": "two", "txt": "second", "cls": 3})
    assert rows_of(source(format="webdataset", path=str(tmp_path)), LABEL) == [
        {"text": "first", "label": None},
        {"text": "second", "label": 3},
    ]


def test_a_packed_member_of_a_sample_has_the_value_that_webdataset_decodes(tmp_path: Path) -> None:
    path = f"{tmp_path}/a.tar"
    with webdataset.TarWriter(path) as writer:
        writer.write({"__key__": "one", "txt.gz": "first", "meta.json.gz": {"stars": 3}, "cls": 1})
    with Path(path).open("rb") as file:
        members = (member | {"__url__": path} for member in webdataset.tariterators.tar_file_iterator(file))
        (theirs,) = map(webdataset.autodecode.Decoder([]), webdataset.tariterators.group_by_keys(members))
    (row,) = rows_of(source(format="webdataset", path=path, text="txt.gz"), ("text", "stars", "label"))
    assert row == {"text": theirs["txt.gz"], "stars": theirs["meta.json.gz"]["stars"], "label": 1}

    (tmp_path / "a.tar").write_bytes(tar_of([("a.txt.gz", gzip.compress(b"x" * 99)[:-4]), ("b.txt.gz", b"plain")]))
    errors = rows_of(source(format="webdataset", path=path, text="txt.gz"), ("text",))
    assert [error.split(" cannot be read: ")[0] for error in errors] == ["a.txt.gz", "b.txt.gz"]


def test_objects_over_several_lines_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n')
    problem = problem_of(source(format="jsonl", path=str(path)), ("text",))
    assert problem.endswith("cat rows.json | jq -c . > rows-lines.jsonl")
    assert problem.code == "not_json_lines"  # type: ignore[attr-defined]


def test_a_line_that_is_a_list_is_still_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('["a", "b"]\n{"text": "c"}\n')
    assert rows_of(source(format="jsonl", path=str(tmp_path)), ("text",)) == [
        "a JSON list, not an object",
        {"text": "c"},
    ]


# --- CSV -------------------------------------------------------------------------------------------


def test_a_text_that_was_read_as_missing_is_counted_unless_the_column_holds_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,region,other\n1,EU,u\nNA,NA,v\n3,AS,w\n4,NA,NA\n")

    notes = [raw.notes for raw in raws(source(format="csv", path=str(tmp_path)), ("region", "x"))]

    assert notes[:-1] == [{}, {}, {}]
    ((note, count),) = notes[-1].items()
    assert (note.startswith("region: 'NA' was read as missing"), count) == (True, 2)
    rows = rows_of(source(format="csv", path=str(tmp_path), missing=[""]), ("region",))
    assert [row["region"] for row in rows] == ["EU", "NA", "AS", "NA"]


def test_numbers_with_a_decimal_comma_are_read_with_a_point(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.5, -1234.25, None, 1e-7], "text": ["1.5", "a, b", "1,2,3", "12.345"]})
    frame.to_csv(tmp_path / "a.csv", sep=";", decimal=",", index=False)
    of = source(format="csv", path=str(tmp_path), delimiter=";", decimal=",")

    rows = rows_of(of, ("x", "text"))
    assert [row["x"] and float(row["x"]) for row in rows] == [1.5, -1234.25, None, 1e-7]
    assert [row["text"] for row in rows] == ["1.5", "a, b", "1,2,3", "12345"]  # a point is between thousands
    (tmp_path / "a.csv").write_text("x\n1.234.567,5\n+0,5\n,5\n1.23\n")
    assert [row["x"] for row in rows_of(of, ("x",))] == ["1234567.5", "+0.5", ".5", "1.23"]


def test_a_row_with_escaped_quotes_is_refused_with_the_field_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n1,"He said \\"hi\\", and left"\n2,\\N\n3,"a \\\\ b"\n4,N\n')
    error, null, *_ = rows_of(source(format="csv", path=str(tmp_path)), ("a", "b"))
    assert 'set `escape: "\\\\"`' in error
    assert null == {"a": "2", "b": None}

    rows = rows_of(source(format="csv", path=str(tmp_path), escape="\\"), ("a", "b"))
    assert [row["b"] for row in rows] == ['He said "hi", and left', None, "a \\ b", "N"]


# --- WebDataset ------------------------------------------------------------------------------------


def test_the_samples_of_names_with_underscores_are_those_of_the_library(tmp_path: Path) -> None:
    names = ["pkg/__init__.txt", "pkg/__main__.txt", "__init__.txt", "__future__/a.txt", "__meta__", "pkg/core.txt"]
    names += ["a/__b__/c.txt", "__d.txt", "README"]
    (tmp_path / "a.tar").write_bytes(tar_of([(name, b"x") for name in names]))
    with (tmp_path / "a.tar").open("rb") as file:
        members = webdataset.tariterators.tar_file_iterator(file)
        members = (member | {"__url__": "a.tar"} for member in members)
        theirs = [sample["__key__"] for sample in webdataset.tariterators.group_by_keys(members)]

    read = raws(source(format="webdataset", path=str(tmp_path)), ("__key__",))

    assert [raw.row["__key__"] for raw in read if raw.row] == theirs
    assert sum(read[-1].notes.values()) == len(names) - len(theirs)
