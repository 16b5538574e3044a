"""Batch prediction without a cluster: what is read, how it is cut and named, what is written and finished."""

import base64
import io
import json
import math
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maas_ray import storage
from maas_ray.batch import answering, plan, run, writing
from maas_ray.batch import counts as counts_of
from maas_ray.batch.plan import Fields
from maas_ray.batch.spec import PredictSpec
from maas_ray.data import reading
from maas_ray.data.reading import Inspected, Raw, inspect
from maas_ray.data.sources import AnySource, CsvSource, InputFile, JsonlSource, ParquetSource, TextSource, list_files
from maas_ray.errors import ConflictError, CorruptError, DataError, InvalidError, SpecError
from maas_ray.settings import Settings
from maas_ray.tasks import AnswerRow, Task
from maas_ray.tasks.text.embeddings import FeatureExtractionSpec
from maas_ray.tasks.text.token_classification import TokenClassificationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from tests.support import bundles
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


def _inspected(source: AnySource, columns: tuple[str, ...]) -> list[Inspected]:
    return [inspect(source, file, columns) for file in list_files(source)]


def test_pieces_are_named_by_their_content_alone(tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"row {n}" for n in range(95)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    source = ParquetSource(path=str(tmp_path / "a.parquet"))

    first = plan.pieces(source, _inspected(source, ("prompt",)), 30)
    (tmp_path / "moved").mkdir()
    moved = ParquetSource(path=str((tmp_path / "a.parquet").rename(tmp_path / "moved" / "a.parquet")))

    assert [piece.rows for piece in first] == [30, 30, 30, 5]
    assert len({piece.name for piece in first}) == 4
    assert [piece.name for piece in plan.pieces(moved, _inspected(moved, ("prompt",)), 30)] == [p.name for p in first]
    pq.write_table(table.slice(1), tmp_path / "moved" / "a.parquet", row_group_size=10)
    changed = plan.pieces(moved, _inspected(moved, ("prompt",)), 30)
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
    parts = [reading.Part(source, file, range(len(file.groups))) for file in _inspected(source, ("label",))]
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


def _work(
    settings: Settings, directory: Path, task: Task, given: Path | dict[str, str], **fields: Any
) -> tuple[run._Work, list[plan.Piece]]:
    """The work that `predict` would send to its actors."""
    bundle = bundles.publish(settings, "batch", task, directory / "bundle")
    document = str(given) if isinstance(given, Path) else given
    spec = PredictSpec.parse({"version": "batch/1", "input": document, "output": str(directory / "out"), **fields})
    source = plan.guessed(spec.input) if isinstance(spec.input, str) else spec.input
    asked = Fields.of(task, source, spec.parameters)
    files = _inspected(source, asked.columns)
    kept = plan.kept_types(plan.sample(source, files, asked), spec.keep)
    return run._Work(bundle, spec, asked, kept, spec.output, 3), plan.pieces(source, files, spec.part_rows)


def _shades(count: int) -> list[bytes]:
    """Images, from dark to light."""
    files = []
    for shade in np.linspace(0, 200, count):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8), shade, np.uint8)).save(buffer, "png")
        files.append(buffer.getvalue())
    return files


def test_a_worker_answers_a_piece_and_sets_aside_what_it_cannot(settings: Settings, tmp_path: Path) -> None:
    files = _shades(10)
    files[4] = b"no image"
    pq.write_table(pa.table({"image": files, "name": [f"n{n}" for n in range(10)]}), tmp_path / "in.parquet")
    work, (piece,) = _work(settings, tmp_path, bundles.image_task(), tmp_path / "in.parquet", batch_size=4)

    entries, counts = run.Worker(work)._piece(piece)

    assert (counts["rows"], counts["quarantined"]) == (9, 1)
    assert [entry.path for entry in entries] == [f"quarantine/{piece.name}.parquet", f"{piece.name}.parquet"]
    rows = pq.read_table(tmp_path / "out" / f"{piece.name}.parquet").to_pylist()
    assert [row["name"] for row in rows] == [f"n{n}" for n in range(10) if n != 4]
    assert {row["label"] for row in rows} <= {"dark", "light"}
    (broken,) = pq.read_table(tmp_path / "out.prediction" / "quarantine" / f"{piece.name}.parquet").to_pylist()
    assert (broken["position"], broken["rows"]) == (4, 1)
    assert "not an image" in broken["error"]

    before = (tmp_path / "out" / f"{piece.name}.parquet").stat().st_mtime_ns
    again, told = run.Worker(work)._piece(piece)  # as if the first worker had died before it answered
    assert (sorted(entry.path for entry in again), told) == (sorted(entry.path for entry in entries), counts)
    assert (tmp_path / "out" / f"{piece.name}.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("CUDA error: device-side assert triggered")])
def test_an_error_of_the_machine_ends_the_prediction(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    pq.write_table(pa.table({"image": _shades(5)}), tmp_path / "in.parquet")
    work, (piece,) = _work(settings, tmp_path, bundles.image_task(), tmp_path / "in.parquet")
    worker = run.Worker(work)

    def failing(**tensors: Any) -> Any:
        raise error

    monkeypatch.setattr(worker._model, "_network", failing)
    with pytest.raises(type(error), match=str(error)):
        worker._piece(piece)

    assert not list((tmp_path / "out").glob("*"))


def test_a_column_that_nobody_asked_for_costs_no_row(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [base64.b64encode(image).decode() for image in _shades(4)]
    ids = [*range(200), 2.75, "A-7"]
    lines = [json.dumps({"image": images[place % 4], "id": one}) + "\n" for place, one in enumerate(ids)]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    source = {"format": "jsonl", "path": str(tmp_path / "in.jsonl"), "encoding": "base64"}

    work, (piece,) = _work(settings, tmp_path, bundles.image_task(), source)
    entries, counts = run.Worker(work)._piece(piece)

    assert (counts["rows"], counts["quarantined"], counts["nulled"]) == (202, 0, {"id (int64)": 2})
    assert pq.read_table(tmp_path / "out" / f"{piece.name}.parquet")["id"].to_pylist() == [*range(200), None, None]
    assert writing.finished(work.uri, piece.name) == (entries, counts)  # a restart tells it too
    told = counts_of.Counts()
    told.add(entries, counts)
    counts_of.report(work.spec, told, 1.0)
    assert "column id (int64): 2 values are of another type" in capsys.readouterr().out

    (tmp_path / "out" / f"{piece.name}.parquet").unlink()
    work, (piece,) = _work(settings, tmp_path, bundles.image_task(), source, keep=["id"])
    _, counts = run.Worker(work)._piece(piece)
    assert (counts["rows"], counts["quarantined"], counts["nulled"]) == (200, 2, {})


def test_a_worker_stops_when_too_much_is_broken(settings: Settings, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"no image"] * 20}), tmp_path / "in.parquet")
    work, (piece,) = _work(settings, tmp_path, bundles.image_task(), tmp_path / "in.parquet", batch_size=4)

    with raises(DataError, "too_many_quarantined", "4 of 20 rows", "max_quarantined (0.2)"):
        run.Worker(work)._piece(piece)

    assert not list((tmp_path / "out").glob("*"))


def test_a_worker_generates_as_a_replica_does_and_the_same_each_time(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,prompt,max_tokens\na,def add(,4\nb,for name,\nc,,3\n")
    fields = {"engine": "transformers", "parameters": {"max_tokens": 6}}
    work, (piece,) = _work(settings, tmp_path, bundles.text_task(), tmp_path / "in.csv", **fields)

    texts = []
    for _ in range(2):
        with closing(run.Worker(work)) as worker:
            _, counts = worker._piece(piece)
        rows = pq.read_table(tmp_path / "out" / f"{piece.name}.parquet").to_pylist()
        texts.append({row["id"]: row["text"] for row in rows})

    assert set(texts[0]) == {"a", "b"}
    assert texts[0] == texts[1]  # sampled, with a seed made from where each row stands
    assert (counts["rows"], counts["quarantined"]) == (2, 1)
