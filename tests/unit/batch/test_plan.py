"""The plan of a batch prediction: its input, cut into pieces, and the fields of its requests."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maas_ray import storage
from maas_ray.batch import answering, plan
from maas_ray.batch.plan import Fields
from maas_ray.batch.spec import PredictSpec
from maas_ray.data.reading import Inspected, Raw
from maas_ray.data.sources import CsvSource, InputFile, JsonlSource, ParquetSource, TextSource
from maas_ray.errors import DataError, InvalidError, SpecError
from maas_ray.tasks.text.embeddings import FeatureExtractionSpec
from maas_ray.tasks.text.token_classification import TokenClassificationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from tests.support import bundles
from tests.support.batch import inspected
from tests.support.errors import raises


@pytest.mark.parametrize(
    ("files", "path", "expected"),
    [
        (["a.jsonl"], "a.jsonl", "jsonl"),
        (["A.PARQUET"], "A.PARQUET", "parquet"),
        (["x/1.csv", "x/2.csv"], "x", "csv"),
        (["x/1.png", "x/notes.md"], "x", "image-folder"),
        (["x/1.txt", "x/2.md"], "x", "text"),
        (["x/1.jsonl"], "x/*.jsonl", "jsonl"),
        (["a.json.gz"], "a.json.gz", "jsonl"),
        (["x/1.json", "x/1.txt"], "x", "text"),
    ],
)
def test_the_names_of_files_say_the_format(tmp_path: Path, files: list[str], path: str, expected: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("x")

    assert plan.guessed(str(tmp_path / path)).format == expected


def test_files_of_two_formats_are_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "b.jsonl").write_text("{}")

    with raises(DataError, "format_ambiguous", tmp_path, "jsonl", "csv"):
        plan.guessed(str(tmp_path))


def test_pieces_are_named_by_their_content_alone(tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"row {n}" for n in range(95)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    source = ParquetSource(path=str(tmp_path / "a.parquet"))

    first = plan.pieces(source, inspected(source, ("prompt",)), 30)
    (tmp_path / "moved").mkdir()
    moved = ParquetSource(path=str((tmp_path / "a.parquet").rename(tmp_path / "moved" / "a.parquet")))

    assert [piece.rows for piece in first] == [30, 30, 30, 5]
    assert len({piece.name for piece in first}) == 4
    assert [piece.name for piece in plan.pieces(moved, inspected(moved, ("prompt",)), 30)] == [p.name for p in first]
    pq.write_table(table.slice(1), tmp_path / "moved" / "a.parquet", row_group_size=10)
    changed = plan.pieces(moved, inspected(moved, ("prompt",)), 30)
    assert not {piece.name for piece in changed} & {piece.name for piece in first}


def test_small_files_share_a_piece(tmp_path: Path) -> None:
    source = TextSource(path=str(tmp_path))
    files = [Inspected(InputFile(f"{tmp_path}/{n}.txt", f"{n}.txt", 10), sha256=f"{n}") for n in range(25)]

    assert [piece.rows for piece in plan.pieces(source, files, 10)] == [10, 10, 5]


def test_a_request_is_made_of_a_row() -> None:
    task = bundles.text_task()
    table = Fields.of(task, JsonlSource(path="x", columns={"prompt": "body"}), {"max_tokens": 4})
    text = Fields.of(task, TextSource(path="x"), {})

    row = {"prompt": "a", "*": {"id": 7, "temperature": 0, "stop": None}}
    assert table.columns == ("prompt", "*")
    assert table.request(row) == {"prompt": "a", "temperature": 0}
    assert table.kept(row)["body"] == "a"
    assert text.request({"text": "ä".encode()}) == {"prompt": "ä"}
    with raises(DataError, "parameter_unknown", "parameters: heat", "prompt, max_tokens"):
        Fields.of(task, TextSource(path="x"), {"heat": 1})
    with raises(DataError, "format_unsuitable", "format text", "image", "image-classification"):
        Fields.of(bundles.image_task(), TextSource(path="x"), {})


def test_fields_that_a_row_may_have_are_looked_for_where_the_source_says() -> None:
    task = bundles.table_task()
    fields = Fields.of(task, CsvSource(path="x", columns={"area": "m2"}), {})

    rows = [{"*": {"m2": "70", "town": "Köln", "area": "A"}}, {"*": {"m2": None, "town": None}}]
    assert [fields.request(row) for row in rows] == [{"area": "70", "town": "Köln"}, {}]
    assert fields.lacking(task, [fields.kept(row) for row in rows]) == []
    assert fields.lacking(task, [{"town": "Köln"}]) == ["m2"]
    given = Fields.of(task, CsvSource(path="x", columns={"area": "m2"}), {"area": 70})
    assert given.lacking(task, [{"town": "Köln"}]) == []


def test_an_input_without_any_column_of_the_request_is_refused() -> None:
    task = bundles.table_task()
    fields = Fields.of(task, CsvSource(path="x", columns={"area": "m2"}), {})

    with raises(DataError, "column_missing", "tabular-regression", "area, town", "m2, town", "a"):
        fields.lacking(task, [{"a": "70"}])
    with raises(InvalidError, "column_missing", "m2, town"):  # a row outside the sample
        fields.request({"*": {"a": "70"}})
    error = answering.request_of(task, fields, {}, Raw("x", 1, {"*": {"a": "70"}}))
    assert isinstance(error, InvalidError)
    assert (error.code, "m2, town" in str(error)) == ("column_missing", True)
    text = bundles.text_task()  # a prompt for all rows
    assert Fields.of(text, JsonlSource(path="x"), {"prompt": "a"}).lacking(text, [{"id": 1}]) == []


@pytest.mark.parametrize(
    "spec", [FeatureExtractionSpec(tokenizer=FittedTokenizer(vocab_size=300)), TokenClassificationSpec()]
)
def test_text_that_a_row_may_have_is_read_from_any_source(spec: Any) -> None:
    pair = {"anchor": "a b", "positive": "b c", "tokens": ["a", "b"], "tags": ["O", "B-x"]}
    task = spec.fit([pair] * 3)

    table = Fields.of(task, JsonlSource(path="x", text="body"), {})
    assert table.request({"*": {"body": "a b", "id": 1}}) == {"text": "a b"}
    assert table.request({"*": {"tokens": ["a"]}}) == {"tokens": ["a"]}
    assert Fields.of(task, TextSource(path="x"), {}).request({"text": b"a b"}) == {"text": "a b"}
    with raises(DataError, "format_unsuitable", "format text", "tabular-regression"):
        Fields.of(bundles.table_task(), TextSource(path="x"), {})


def test_numbers_and_short_strings_are_kept_of_themselves() -> None:
    rows = [
        {"id": 1, "mixed": 1, "share": 1, "long": "x" * 2000, "tags": ["a"], "none": None, "bytes": b"x"},
        {"id": 2, "mixed": "b", "share": 0.5, "long": "y", "tags": [], "none": None},
    ]

    assert plan.kept_types(rows, None) == {
        "id": pa.int64(),
        "mixed": pa.string(),
        "share": pa.float64(),
        "none": pa.string(),
    }
    assert plan.kept_types(rows, ("tags", "long")) == {"tags": pa.list_(pa.string()), "long": pa.string()}
    with raises(DataError, "column_missing", "keep", "age", "id, mixed"):
        plan.kept_types(rows, ("age",))


def test_a_whole_bucket_is_not_an_output() -> None:
    with raises(SpecError, "output_is_bucket", "s3://bucket"):
        PredictSpec.parse({"version": "m", "input": "data/", "output": "s3://bucket/"})
    assert PredictSpec.parse({"version": "m", "input": "data/", "output": "s3://bucket/out"})


def test_an_output_inside_the_input_is_refused() -> None:
    with raises(SpecError, "output_in_input", "output: data/out"):
        PredictSpec.parse({"version": "m", "input": "data/", "output": "data/out"})
    assert json.loads(PredictSpec.parse({"version": "m", "input": "data", "output": "data-out"}).model_dump_json())


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_glob_skips_files_in_the_output(tmp_path: Path, scheme: str) -> None:
    uri = f"{scheme}{tmp_path}"
    for name in ("a.jsonl", "deep/b.jsonl", "out/c.jsonl", "out.prediction/e.jsonl", "out-of/d.jsonl"):
        storage.write_json(f"{uri}/{name}", {})
    source = JsonlSource(path=f"{uri}/**/*.jsonl")

    assert [file.relative for file in plan.listed(source, f"{uri}/out")] == [
        "a.jsonl",
        "deep/b.jsonl",
        "out-of/d.jsonl",
    ]
    with raises(DataError, "input_in_output", f"{uri}/out"):
        plan.listed(JsonlSource(path=f"{uri}/out/*.jsonl"), f"{uri}/out/")
