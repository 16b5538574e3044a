"""A worker of a batch prediction answers a piece, quarantines wrong rows and stops when too many are wrong."""

import base64
import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maas_ray.batch import counts as counts_of
from maas_ray.batch import plan, run, writing
from maas_ray.batch.plan import Fields
from maas_ray.batch.spec import PredictSpec
from maas_ray.errors import DataError
from maas_ray.settings import Settings
from maas_ray.tasks import Task
from tests.support import bundles
from tests.support.batch import inspected
from tests.support.errors import raises


def _work(
    settings: Settings, directory: Path, task: Task, given: Path | dict[str, str], **fields: Any
) -> tuple[run._Work, list[plan.Piece]]:
    """The work that `predict` would send to its actors."""
    bundle = bundles.publish(settings, "batch", task, directory / "bundle")
    document = str(given) if isinstance(given, Path) else given
    spec = PredictSpec.parse({"version": "batch/1", "input": document, "output": str(directory / "out"), **fields})
    source = plan.guessed(spec.input) if isinstance(spec.input, str) else spec.input
    asked = Fields.of(task, source, spec.parameters)
    files = inspected(source, asked.columns)
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
