"""Cleaning through `prepare`, on a cluster: in order, counted by reason, fitted on the training split, one's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from maas_ray import PrepareSpec
from maas_ray.data.cleaning import loaded
from maas_ray.data.dataset import PreparedDataset
from maas_ray.data.kept_columns import stored_columns, texts
from maas_ray.data.names import SPLITS
from maas_ray.data.prepare import prepare
from maas_ray.errors import DataError
from maas_ray.settings import Settings
from tests.support.errors import raises

pytestmark = pytest.mark.usefixtures("cluster")

OWN = '''
from maas_ray.data.cleaning import CleaningStep, Dropped, value


class NoDrafts(CleaningStep):
    """Leaves out texts that begin with a word."""

    word: str = "DRAFT"
    """The word."""

    def clean(self, row, notes):
        text = value(row, "text")
        if text.startswith(self.word):
            raise Dropped("a draft")
        if text.startswith("BROKEN"):
            raise KeyError("nobody expected this")
        return row
'''


@pytest.fixture
def place(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path / "home"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(path: Path, place: Settings, parallelism: int | None = None, **changes: Any) -> PreparedDataset:
    document = {
        "dataset": "cleaned",
        "task": {"type": "text-classification", "tokenizer": {"vocab_size": 300}, "max_length": 16},
        "sources": [{"format": "jsonl", "path": str(path)}],
        "splits": {"validation": 0.2, "test": 0.2},
        **changes,
    }
    dataset = prepare(PrepareSpec.parse(document), settings=place, parallelism=parallelism)
    assert dataset.meta.counts.adds_up()
    return dataset


def removed(dataset: PreparedDataset, directory: str = "removed") -> list[dict[str, Any]]:
    paths = [entry.path for entry in dataset.artifact.files if entry.path.startswith(f"{directory}/")]
    return [row for path in paths for row in pq.read_table(f"{dataset.uri}/{path}").to_pylist()]


def test_steps_of_text_run_in_order_and_are_counted(
    tmp_path: Path, place: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_steps.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    long = "plain words that say a little of something and then some more "
    rows = [{"text": f"{long} {number}", "label": "ab"[number % 2]} for number in range(60)]
    rows += [{"text": f"{long} mail ada{number}@example.org and bob@example.org", "label": "a"} for number in range(4)]
    rows += [{"text": f"schÃ¶n {long} {number}", "label": "a"} for number in range(3)]
    rows += [{"text": f"tiny ada{number}@example.org", "label": "a"} for number in range(2)]
    rows += [{"text": f"DRAFT {long} {number}", "label": "a"} for number in range(5)]
    rows += [{"text": f"BROKEN {long} {number}", "label": "a"} for number in range(2)]
    clean = [
        {"step": "fix_text"},
        {"step": "length", "min_words": 5},
        {"step": "my_steps:NoDrafts"},
        {"step": "pii"},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    dataset = prepared(path, place, clean=clean)
    counts = dataset.meta.counts
    assert counts.quarantined == 2
    assert sum(counts.dropped.values()) == 7
    assert {reason.partition(":")[0] for reason in counts.dropped} == {"length", "my_steps"}
    mails = {what: count for what, count in counts.cleaned.items() if "EMAIL" in what}
    # Once cleaned, the four texts with an address are one: what is compared is what is kept.
    assert (list(mails.values()), counts.duplicates) == ([8], 3)
    assert any(what.startswith("fix_text") for what in counts.cleaned)
    (text,) = {row["excerpt"] for row in removed(dataset) if row["fate"] == "" and b"EMAIL" in row["excerpt"]}
    assert b"<EMAIL_ADDRESS>" in text
    assert b"example.org" not in text
    every = [*removed(dataset), *removed(dataset, "quarantine")]
    assert not any(b"example.org" in row["excerpt"] for row in every)
    errors = {row["error"] for row in removed(dataset, "quarantine")}
    assert errors == {"step my_steps:NoDrafts: KeyError: 'nobody expected this'"}
    said = capsys.readouterr().out
    assert "a draft" in said
    assert "EMAIL_ADDRESS" in said
    # Another word is another dataset; and so is other code.
    again = [*clean[:2], {"step": "my_steps:NoDrafts", "word": "SKETCH"}, clean[3]]
    assert prepared(path, place, clean=again).fingerprint != dataset.fingerprint


def test_too_many_quarantined_rows_stop_the_run_with_the_three_most_common_errors(
    tmp_path: Path, place: Settings
) -> None:
    path = tmp_path / "rows.jsonl"
    good = "".join(json.dumps({"text": f"well {n}", "label": "a"}) + "\n" for n in range(10))
    path.write_text(
        good + "{broken\n" * 6 + "[1]\n" * 4 + '{"text": 1, "label": 2}\n' * 3 + '{"text": "x", "label": [2]}\n'
    )
    with raises(DataError, "too_many_quarantined", "14 of 24 rows") as caught:
        prepared(path, place)
    lines = str(caught.value).splitlines()[1:4]
    assert [line.split(" × ")[0].strip() for line in lines] == ["6", "4", "3"]
    assert all(str(path) in line for line in lines)


def test_statistics_of_the_training_split_are_saved_and_used_again(tmp_path: Path, place: Settings) -> None:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {"name": f"r{number}", "size": rng.normal(50, 5), "town": "Ulm" if number % 3 else "Köln", "price": number}
        for number in range(200)
    ]
    for number in range(0, 200, 10):
        rows[number]["size"] = None
    for number in range(5, 200, 40):
        rows[number]["size"] = 1e6
    for number in range(7, 200, 25):
        rows[number]["town"] = None
    path = write(tmp_path / "rows.jsonl", rows)
    clean = [
        {"step": "outliers", "method": "iqr", "columns": ["size"]},
        {"step": "missing", "columns": ["size"], "strategy": "median"},
        {"step": "missing", "columns": ["town"], "strategy": "mode"},
    ]
    task = {"type": "tabular-regression", "target": "price", "exclude": ["name"]}
    one = prepared(path, place, task=task, clean=clean, keep=["name"])
    counts = one.meta.counts
    assert sum(counts.dropped.values()) == 5
    train = names(one)["train"]
    known = [row["size"] for row in rows if row["name"] in train and row["size"] is not None]
    steps = loaded(one.meta.cleaning)
    assert float(np.median(known)) in values_in(steps[1].document())
    assert "Ulm" in values_in(steps[2].document())
    # However the work is cut, the same numbers and the same rows.
    two = prepared(path, Settings(home=f"{place.home}2"), parallelism=5, task=task, clean=clean, keep=["name"])
    assert two.fingerprint == one.fingerprint
    assert two.meta.cleaning == one.meta.cleaning
    assert names(two) == names(one)


def names(dataset: PreparedDataset) -> dict[str, list[str]]:
    (column,) = stored_columns(["name"])
    found = {}
    for split in SPLITS:
        batches = dataset.read(dataset.row_groups(split), ["name"])
        found[split] = [text for batch in batches for text in texts(batch[column])]
    return found


def values_in(document: Any) -> list[Any]:
    if isinstance(document, dict):
        return [value for part in document.values() for value in values_in(part)]
    if isinstance(document, (list, tuple)):
        return [value for part in document for value in values_in(part)]
    return [document]


def test_files_that_are_not_images_are_quarantined_or_dropped(tmp_path: Path, place: Settings) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(path)
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(tmp_path / "images/a/blank.png")
    Image.fromarray(rng.integers(0, 255, (2, 2), np.uint8)).save(tmp_path / "images/a/tiny.png")
    (tmp_path / "images/a/empty.png").write_bytes(b"")
    (tmp_path / "images/a/text.jpg").write_text("no image")
    dataset = prepared(
        tmp_path / "images",
        place,
        task={"type": "image-classification", "image_size": [8, 8]},
        sources=[{"format": "image-folder", "path": str(tmp_path / "images")}],
        clean=[{"step": "image", "min_side": 8}],
    )
    counts = dataset.meta.counts
    assert sum(counts.kept.values()) == 30
    assert sum(counts.dropped.values()) + counts.quarantined == 4
