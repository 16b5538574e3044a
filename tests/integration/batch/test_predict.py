"""Batch prediction: the answers are those of serving, each row has one, and kills lose and repeat nothing."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maas_ray import PredictSpec, predict
from maas_ray.errors import ConflictError, DataError
from maas_ray.serve.engines import network
from maas_ray.serve.spec import ServingOptions
from maas_ray.settings import Settings
from maas_ray.storage import open_artifact
from tests.support import bundles
from tests.support.errors import raises

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def digits(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A version that answers images of digits (its weights are random), and a table of them."""
    from PIL import Image
    from sklearn.datasets import load_digits

    directory = tmp_path_factory.mktemp("digits")
    task = bundles.image_task(tuple(map(str, range(10))))
    bundles.register(settings, "batch-digits", task, directory / "bundle")
    data = load_digits()
    images = []
    for image in data.images:
        buffer = io.BytesIO()
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(buffer, "png")
        images.append(buffer.getvalue())
    table = pa.table({"id": np.arange(len(images)), "image": images, "label": [str(one) for one in data.target]})
    pq.write_table(table, directory / "digits.parquet", row_group_size=100)
    return {"task": task, "bundle": directory / "bundle", "table": directory / "digits.parquet", "rows": table}


def _read(output: Path) -> "pa.Table":
    return pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))])


def test_answers_are_those_of_serving_bit_for_bit(settings: Settings, digits: dict[str, Any], tmp_path: Path) -> None:
    spec = PredictSpec(
        version="batch-digits@champion",
        input=str(digits["table"]),
        output=str(tmp_path / "out"),
        part_rows=500,
        batch_size=20,
        workers=2,
    )

    done = predict(spec, settings=settings)

    rows = digits["rows"].to_pylist()
    found = {row["id"]: row for row in _read(tmp_path / "out").to_pylist()}
    assert (done.rows, done.quarantined, len(found)) == (1797, 0, 1797)
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 4
    task, options = digits["task"], ServingOptions()
    model, _ = network.load(task, digits["bundle"], options)
    for start in (0, 480, 1780):  # batches as the actors made them
        batch = [task.to_inputs(task.request(image=row["image"])) for row in rows[start : start + 20]]
        for row, answer in zip(rows[start : start + 20], network.answers(task, model, batch), strict=True):
            said = task.to_answer(answer)
            assert found[row["id"]]["label"] == said.label
            assert {score["key"]: score["value"] for score in found[row["id"]]["scores"]} == said.scores
            assert found[row["id"]]["input_label"] == row["label"]
            assert found[row["id"]]["position"] == row["id"]
    artifact = open_artifact(str(tmp_path / "out"), "predictions", str(tmp_path / "out.prediction" / "manifest.json"))
    artifact.verify()
    assert artifact.meta["rows"] == 1797

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert predict(spec, settings=settings) == done
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_another_prediction_into_the_same_output_is_refused(
    settings: Settings, digits: dict[str, Any], tmp_path: Path
) -> None:
    small = tmp_path / "small.parquet"
    pq.write_table(digits["rows"].slice(0, 40), small)
    spec = PredictSpec(version="batch-digits/1", input=str(small), output=str(tmp_path / "out"))
    predict(spec, settings=settings)

    with raises(ConflictError, "output_of_another_prediction", spec.output, "keep (None, now ['id'])"):
        predict(spec.model_copy(update={"keep": ("id",)}), settings=settings)
    pq.write_table(digits["rows"].slice(1, 40), small)
    with raises(ConflictError, "output_of_another_prediction", spec.output, "input ("):
        predict(spec, settings=settings)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with raises(ConflictError, "output_not_empty", tmp_path / "other", "thesis.tex"):
        predict(spec.model_copy(update={"output": str(tmp_path / "other")}), settings=settings)


def test_bad_rows_are_set_aside_with_their_reasons(settings: Settings, digits: dict[str, Any], tmp_path: Path) -> None:
    import base64

    lines = [
        {"image": base64.b64encode(row["image"]).decode(), "name": f"d{row['id']}"}
        for row in digits["rows"].slice(0, 20).to_pylist()
    ]
    text = [json.dumps(line) for line in lines]
    text[3] = "{not json"
    text[7] = json.dumps({"image": base64.b64encode(b"no image").decode(), "name": "d7"})
    text[9] = json.dumps({"name": "d9"})
    text[11] = json.dumps({"image": lines[11]["image"], "name": ["d", 11]})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(text) + "\n")
    spec = PredictSpec.parse(
        {
            "version": "batch-digits/1",
            "input": {"format": "jsonl", "path": str(path), "encoding": "base64"},
            "output": str(tmp_path / "out"),
            "batch_size": 4,
        }
    )

    done = predict(spec, settings=settings)

    assert (done.rows, done.quarantined) == (17, 3)
    found = _read(tmp_path / "out").to_pylist()
    kept = {row["position"]: row["name"] for row in found}
    assert kept == {n + 1: f"d{n}" for n in range(20) if n not in (3, 7, 9, 11)} | {12: '["d", 11]'}
    (broken,) = (tmp_path / "out.prediction" / "quarantine").glob("*.parquet")
    errors = {row["position"]: row for row in pq.read_table(broken).to_pylist()}
    assert errors[4]["error"].startswith("not JSON")
    assert "not an image" in errors[8]["error"]
    assert errors[10]["error"] == "Missing required parameter: 'image'."
    assert errors[4]["excerpt"] == b"{not json\n"

    with raises(DataError, "too_many_quarantined", "3 of 20 rows", "max_quarantined (0.1)"):
        predict(spec.model_copy(update={"max_quarantined": 0.1, "output": str(tmp_path / "strict")}), settings=settings)
    assert not (tmp_path / "strict.prediction" / "manifest.json").exists()


def test_a_directory_of_images_without_labels(
    digits: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for row in digits["rows"].slice(0, 7).to_pylist():
        (tmp_path / "in" / f"{row['id']}.png").write_bytes(row["image"])

    predict(PredictSpec(version="batch-digits/1", input="in", output="out"))

    found = _read(tmp_path / "out").to_pylist()
    assert sorted(Path(row["path"]).name for row in found) == [f"{n}.png" for n in range(7)]


def test_text_is_generated_as_a_replica_generates_it(settings: Settings, tmp_path: Path) -> None:
    task = bundles.text_task()
    bundles.register(settings, "batch-text", task, tmp_path / "bundle")
    path = tmp_path / "prompts.csv"
    path.write_text("id,prompt,max_tokens\na,def add(,4\nb,for name,\nc,,3\n")

    predict(
        PredictSpec.parse(
            {
                "version": "batch-text@champion",
                "input": str(path),
                "output": str(tmp_path / "out"),
                "parameters": {"temperature": 0, "max_tokens": 8},
                "max_quarantined": 0.5,
                "engine": "transformers",
            }
        ),
        settings=settings,
    )

    found = {row["id"]: row for row in _read(tmp_path / "out").to_pylist()}
    model = task.load_model(tmp_path / "bundle")
    import torch

    for name, prompt, most in (("a", "def add(", 4), ("b", "for name", 8)):
        ids = torch.tensor([task.tokenizer.encode(prompt).ids])
        out = model.generate(ids, max_new_tokens=most, do_sample=False, eos_token_id=task.end_of_text_id)
        assert found[name]["text"] == task.tokenizer.decode(out[0, ids.shape[1] :].tolist())
    (broken,) = (tmp_path / "out.prediction" / "quarantine").glob("*.parquet")
    assert [row["position"] for row in pq.read_table(broken).to_pylist()] == [4]


SCRIPT = """
import sys
from maas_ray import PredictSpec, predict
predict(PredictSpec.parse({"version": "batch-digits/1", "input": sys.argv[1], "output": sys.argv[2], "part_rows": 100,
                           "batch_size": 10, "workers": 2}))
"""


def test_killed_twice_it_loses_and_repeats_nothing(settings: Settings, digits: dict[str, Any], tmp_path: Path) -> None:
    table = pa.concat_tables([digits["rows"]] * 8)
    table = table.set_column(0, "id", pa.array(np.arange(len(table))))
    pq.write_table(table, tmp_path / "many.parquet", row_group_size=100)
    output = tmp_path / "out"

    def finished() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in output.glob("part-*.parquet")}

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 120
        while len(finished()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "many.parquet"), str(output)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    wait_for(5)
    driver.kill()  # SIGKILL
    driver.wait()
    time.sleep(3)  # its actors end with it
    first = finished()
    assert 5 <= len(first) < 144

    done = []
    spec = PredictSpec(
        version="batch-digits/1",
        input=str(tmp_path / "many.parquet"),
        output=str(output),
        part_rows=100,
        batch_size=10,
        workers=2,
    )
    thread = threading.Thread(target=lambda: done.append(predict(spec, settings=settings)))
    thread.start()
    wait_for(len(first) + 5)
    victims = [
        process
        for process in psutil.Process().children(recursive=True)
        if "MapWorker" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    ]
    assert victims
    victims[0].send_signal(signal.SIGKILL)
    second = finished()
    assert len(second) < 144
    thread.join(180)

    (result,) = done
    assert (result.rows, result.quarantined) == (len(table), 0)
    last = finished()
    assert {path: last[path] for path in first} == first
    assert {path: last[path] for path in second} == second
    assert sorted(_read(output)["id"].to_pylist()) == list(range(len(table)))
    open_artifact(str(output), "predictions", f"{output}.prediction/manifest.json").verify()
