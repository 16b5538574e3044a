"""Decisions that need all rows, on a cluster: groups, labels, given splits, weights, decontamination."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from maas_ray import PrepareSpec
from maas_ray.data.dataset import PreparedDataset
from maas_ray.data.kept_columns import stored_columns, texts
from maas_ray.data.names import SPLITS
from maas_ray.data.prepare import prepare
from maas_ray.errors import SpecError
from maas_ray.settings import Settings
from tests.support.errors import raises

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def place(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path / "home"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """300 texts in three files: five sites, a rare label, a split each, and copies that differ in case."""
    rng = random.Random(0)
    rows = []
    for number in range(300):
        row = {
            "name": f"t{number}",
            "text": f"t{number} " + " ".join(f"w{rng.randrange(400)}" for _ in range(40)),
            "label": "rare" if number % 15 == 0 else "common",
            "site": f"site {number % 20}",
            "fold": SPLITS[(number % 10) // 8 * (1 + number % 2)],
        }
        rows.append(row)
        if number % 30 == 0:
            rows.append(
                {**row, "text": row["text"].upper(), "fold": "train", "site": "another", "name": f"copy{number}"}
            )
    directory = tmp_path / "in"
    directory.mkdir()
    for part in range(3):
        lines = [json.dumps(row) for number, row in enumerate(rows) if number % 3 == part]
        (directory / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def prepared(files: Path, place: Settings, parallelism: int | None = None, **changes: Any) -> PreparedDataset:
    document = {
        "dataset": "judged",
        "task": {"type": "text-classification", "tokenizer": {"vocab_size": 300}, "max_length": 8},
        "sources": [{"format": "jsonl", "path": str(files)}],
        "splits": {"validation": 0.1, "test": 0.1},
        "keep": ["name", "label", "site", "fold"],
        **changes,
    }
    dataset = prepare(PrepareSpec.parse(document), settings=place, parallelism=parallelism)
    assert dataset.meta.counts.adds_up()
    return dataset


def kept(dataset: PreparedDataset, name: str) -> dict[str, list[str]]:
    """A column's values by split."""
    column = next(iter(stored_columns([name])))
    found = {}
    for split in SPLITS:
        groups = dataset.row_groups(split) if dataset.meta.splits[split].rows else []
        found[split] = [text for batch in dataset.read(groups, [name]) for text in texts(batch[column])]
    return found


def removed(dataset: PreparedDataset) -> list[dict[str, Any]]:
    paths = [entry.path for entry in dataset.artifact.files if entry.path.startswith("removed/")]
    return [row for path in paths for row in pq.read_table(f"{dataset.uri}/{path}").to_pylist()]


def test_rows_of_a_group_are_in_one_split(files: Path, place: Settings) -> None:
    splits = {"validation": 0.25, "test": 0.25, "group": "site"}
    dataset = prepared(files, place, splits=splits)
    sites = kept(dataset, "site")
    assert all(sites.values())
    of = {site: split for split, values in sites.items() for site in values}
    assert all(of[site] == split for split, values in sites.items() for site in values)
    # A copy is in another group, so it could lie in another split; it is found all the same.
    assert dataset.meta.counts.duplicates == 10
    again = prepared(files, Settings(home=f"{place.home}2"), parallelism=5, splits=splits)
    assert again.fingerprint == dataset.fingerprint
    assert kept(again, "name") == kept(dataset, "name")


def test_stratify_holds_out_the_same_share_of_each_label(files: Path, place: Settings) -> None:
    labels = kept(prepared(files, place, splits={"validation": 0.1, "test": 0.2, "stratify": "label"}), "label")
    assert {split: Counter(values) for split, values in labels.items()} == {
        "train": Counter(common=196, rare=14),
        "validation": Counter(common=28, rare=2),
        "test": Counter(common=56, rare=4),
    }


def test_a_column_gives_splits_and_training_duplicates_are_dropped(files: Path, place: Settings) -> None:
    dataset = prepared(files, place, splits={"column": "fold"})
    folds = kept(dataset, "fold")
    assert all(set(values) == {split} for split, values in folds.items())
    # Number 0, 30, 60, … are for training, and so is each one's copy: one of both is kept.
    assert dataset.meta.counts.duplicates == 10
    pairs = removed(dataset)
    like = {row["row"]: row for row in pairs if row["fate"] == ""}
    for row in pairs:
        if row["fate"] == "duplicate":
            known = like[row["like"]]
            assert (known["path"], known["position"]) != (row["path"], row["position"])
            assert known["like"] == known["row"]


def test_rows_of_a_test_source_are_not_trained_on(files: Path, place: Settings) -> None:
    # The same rows once more as the test set: all of them are tested with, none is trained on.
    held = files.parent / "held.jsonl"
    lines = (files / "0.jsonl").read_text().splitlines()
    held.write_text("\n".join(lines) + "\n")
    sources = [
        {"format": "jsonl", "path": str(files)},
        {"format": "jsonl", "path": str(held), "split": "test"},
    ]
    dataset = prepared(files, place, sources=sources, splits={"validation": 0, "test": 0})
    names = kept(dataset, "name")
    same = {json.loads(line)["text"].lower() for line in lines}
    assert len(names["test"]) == len(same)
    assert not {json.loads(line)["name"] for line in lines} & {*names["train"]}


def test_weights_repeat_or_sample_training_rows_only(files: Path, place: Settings) -> None:
    once = kept(prepared(files, place), "name")
    more = prepared(files, place, sources=[{"format": "jsonl", "path": str(files), "weight": 2.5}])
    names = kept(more, "name")
    times = Counter(names["train"])
    assert set(times) == set(once["train"])
    assert set(times.values()) == {2, 3}
    assert more.meta.counts.copies == len(names["train"]) - len(once["train"])
    assert {split: sorted(names[split]) for split in SPLITS[1:]} == {split: sorted(once[split]) for split in SPLITS[1:]}
    some = prepared(files, place, sources=[{"format": "jsonl", "path": str(files), "weight": 0.25}])
    few = kept(some, "name")
    assert {*few["train"]} < {*once["train"]}
    # A row that is sampled out stands for none: its copy goes by its weight too, and not as a duplicate.
    out = some.meta.counts.dropped["weight"] + some.meta.counts.duplicates
    assert out == 10 + len(once["train"]) - len(few["train"])
    assert 0.15 < len(few["train"]) / len(once["train"]) < 0.35


def test_a_training_row_that_quotes_a_test_row_is_dropped(files: Path, place: Settings) -> None:
    held = kept(prepared(files, place), "name")["test"][0]
    rows = [json.loads(line) for path in sorted(files.iterdir()) for line in path.read_text().splitlines()]
    text = next(row["text"] for row in rows if row["name"] == held)
    quotes = [f"quote {number} before {' '.join(text.split()[5:25])} and after it" for number in range(40)]
    (files / "quotes.jsonl").write_text(
        "".join(
            json.dumps({"name": f"q{number}", "text": quote, "label": "common", "site": "q", "fold": "train"}) + "\n"
            for number, quote in enumerate(quotes)
        )
    )
    dataset = prepared(files, place, decontaminate={})
    names = kept(dataset, "name")
    assert not any(name.startswith("q") for name in names["train"])
    assert held in names["test"]
    assert dataset.meta.counts.dropped["contaminated"] == 40 - sum(
        name.startswith("q") for split in SPLITS[1:] for name in names[split]
    )


def test_normalise_and_exact_say_which_rows_are_equal(files: Path, place: Settings) -> None:
    dataset = prepared(files, place, deduplicate={"exact": False})
    assert (dataset.meta.counts.duplicates, sum(dataset.meta.counts.kept.values())) == (0, 310)
    assert prepared(files, place, deduplicate={"normalise": False}).meta.counts.duplicates == 0
    every = np.concatenate([list(values) for values in kept(dataset, "name").values()])
    assert len(set(every)) == 310


@pytest.mark.parametrize(
    ("changes", "code", "values"),
    [
        ({"deduplicate": {"exact": False, "near": {}}}, "near_without_exact", ["deduplicate: ", "`exact: false`"]),
        ({"splits": {"group": "site", "column": "fold"}}, "exclusive_fields", ["splits: ", "group and column"]),
        ({"sources": [{"format": "text", "path": "x"}]}, "column_missing", ["keep: ", "sources[0]", "text", "'name'"]),
    ],
)
def test_contradictions_in_a_spec_are_refused_before_anything_runs(
    files: Path, place: Settings, changes: dict[str, Any], code: str, values: list[str]
) -> None:
    with raises(SpecError, code, *values):
        prepared(files, place, **changes)
