"""Datasets have the content that version 0.2.0 gave them: the same rows, in the same splits and the same order.

The digests were computed by the pipeline that sorted whole rows (commit 49270fa), on the same input.
"""

import csv
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maas_ray import PrepareSpec
from maas_ray.data.dataset import PreparedDataset
from maas_ray.data.names import SPLITS
from maas_ray.data.prepare import prepare
from maas_ray.settings import Settings

pytestmark = pytest.mark.usefixtures("cluster")

WORDS = [f"{one}{other}" for one in ("ba", "ke", "li", "mo", "nu") for other in ("da", "fe", "gi", "so", "tu", "")]


def texts(draw: random.Random, count: int, longest: int) -> list[str]:
    """Texts of random words, some of them twice, in other case, or with a few words changed."""
    found: list[str] = []
    for number in range(count):
        words = draw.choices(WORDS, k=1 + int(draw.random() * longest))
        found.append(" ".join(words))
        if number % 7 == 0:
            found.append(draw.choice(found))
        if number % 11 == 0:
            found.append(draw.choice(found).upper())
        if number % 13 == 0:
            found.append(draw.choice(found) + " " + draw.choice(WORDS))
    return [*found, "", " "]


def write_jsonl(directory: Path, rows: list[Any], files: int, first: int = 0) -> None:
    directory.mkdir(exist_ok=True)
    for number in range(files):
        lines = [json.dumps(row) for row in rows[number::files]] + ["{broken"]
        (directory / f"{first + number}.jsonl").write_text("\n".join(lines) + "\n")


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def packed_text(directory: Path) -> dict[str, Any]:
    write_jsonl(directory / "in", [{"text": text} for text in texts(random.Random(1), 150, 90)], 4)
    task = {"type": "text-generation", "tokenizer": {"vocab_size": 300}, "sequence_length": 32}
    return {"task": task, "sources": [{"format": "jsonl", "path": str(directory / "in")}], "seed": 3}


def table(directory: Path) -> dict[str, Any]:
    draw = random.Random(2)
    for number in range(4):
        rows = [
            [draw.choice([1, 2, 3, ""]), round(draw.gauss(0, 3), 2), draw.choice(["x", "y, z", ""]), draw.randrange(9)]
            for _ in range(150)
        ]
        rows += [*rows[:20], ["1", "far", "x", "none"]]
        write_csv(directory / f"in{number % 2}" / f"{number}.csv", ["a", "b", "c", "price"], rows)
    sources = [
        {"format": "csv", "path": str(directory / "in0"), "weight": 0.5},
        {"format": "csv", "path": str(directory / "in1"), "weight": 2.5},
    ]
    clean = [{"step": "missing", "columns": ["a"], "strategy": "mean"}, {"step": "outliers", "columns": ["b"]}]
    task = {"type": "tabular-regression", "target": "price"}
    return {"task": task, "sources": sources, "clean": clean, "keep": ["c"]}


def labelled(directory: Path) -> dict[str, Any]:
    draw = random.Random(3)
    rows = [{"text": text, "label": draw.choice("abb")} for text in texts(draw, 160, 60)]
    write_jsonl(directory / "in", rows, 3)
    return {
        "task": {"type": "text-classification", "tokenizer": {"vocab_size": 300}, "max_length": 16},
        "sources": [{"format": "jsonl", "path": str(directory / "in"), "weight": 0.8}],
        "deduplicate": {"near": {"threshold": 0.8}},
        "splits": {"validation": 0.2, "test": 0.2, "stratify": "label"},
    }


def quoted(directory: Path) -> dict[str, Any]:
    """Training rows that quote test rows; splits are given by source."""
    draw = random.Random(4)
    held_out = texts(draw, 30, 40)
    rows = texts(draw, 80, 40) + [f"nuba {text} likeda" for text in held_out[::3]] + held_out[::5]
    write_jsonl(directory / "test", [{"text": text, "label": "a"} for text in held_out], 1)
    write_jsonl(directory / "train", [{"text": text, "label": draw.choice("ab")} for text in rows], 3)
    return {
        "task": {"type": "text-classification", "tokenizer": {"vocab_size": 300}, "max_length": 16},
        "sources": [
            {"format": "jsonl", "path": str(directory / "train")},
            {"format": "jsonl", "path": str(directory / "test"), "split": "test"},
        ],
        "decontaminate": {"ngram": 8},
        "max_quarantined": 0.3,
    }


def images(directory: Path) -> dict[str, Any]:
    from PIL import Image

    draw = np.random.default_rng(5)
    for number in range(40):
        path = directory / "in" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
        if number % 9 == 0:
            path.with_name(f"copy{number}.png").write_bytes(path.read_bytes())
    task = {"type": "image-classification"}
    splits = {"validation": 0.2, "test": 0.2}
    return {"task": task, "sources": [{"format": "image-folder", "path": str(directory / "in")}], "splits": splits}


def series(directory: Path) -> dict[str, Any]:
    draw = random.Random(6)
    for number in range(3):
        rows = [[f"s{number}{index % 2}", index, round(draw.gauss(0, 1), 3)] for index in range(120)]
        write_csv(directory / "in" / f"{number}.csv", ["name", "day", "y"], rows)
    task = {"type": "time-series-forecasting", "target": "y", "context_length": 6, "horizon": 2}
    task |= {"series": "name", "time": "day"}
    splits = {"validation": 0.2, "test": 0.2}
    return {"task": task, "sources": [{"format": "csv", "path": str(directory / "in")}], "splits": splits}


def digest_of(dataset: PreparedDataset) -> str:
    """A digest of all rows: those that are stored, in order, and those that are not; and of their statistics."""
    digest = hashlib.sha256(repr(dataset.meta.counts).encode())
    for split in SPLITS:
        for shard in dataset.split(split).shards:
            digest.update(f"{split} {shard.start} {shard.row_groups}".encode())
            stored = pq.read_table(f"{dataset.uri}/{shard.path}")
            for name in stored.column_names:
                digest.update(f"{name}{stored[name].to_pylist()}".encode())
    home = Path(dataset.uri)
    for directory in ("removed", "quarantine", "index"):
        tables = [pq.read_table(path) for path in (home / directory).glob("*.parquet")]
        for row in sorted(map(repr, pa.concat_tables(tables).to_pylist() if tables else [])):
            digest.update(row.replace(str(home.parents[6]), "").encode())
    digest.update((home / "profile.json").read_bytes())
    return digest.hexdigest()[:16]


EXPECTED = {
    "packed_text": "056767200a29753c",
    "table": "8ca1a85405359e69",
    "labelled": "95a83f09a9170376",
    "quoted": "0e06ebfe05d838e8",
    "images": "80f7e50c097ff2de",
    "series": "588e9e2cba17350b",
    "grown": "69cdbb501010e97d",
}
KINDS: list[Callable[[Path], dict[str, Any]]] = [packed_text, table, labelled, quoted, images, series]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_the_dataset_is_the_one_that_it_always_was(kind: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    spec = PrepareSpec.parse({"dataset": "same"} | kind(tmp_path))
    dataset = prepare(spec, settings=Settings(home=str(tmp_path / "a/b/home")), parallelism=3)
    assert digest_of(dataset) == EXPECTED[kind.__name__]


def test_a_grown_dataset_is_the_one_that_it_always_was(tmp_path: Path) -> None:
    spec = PrepareSpec.parse({"dataset": "same"} | labelled(tmp_path))
    settings = Settings(home=str(tmp_path / "a/b/home"))
    prepare(spec, settings=settings, parallelism=2)
    draw = random.Random(7)
    old = [json.loads(line) for line in (tmp_path / "in/0.jsonl").read_text().splitlines()[:20]]
    rows = [{"text": text, "label": draw.choice("ab")} for text in texts(draw, 60, 60)]
    write_jsonl(tmp_path / "in", rows + old, 2, first=5)
    dataset = prepare(spec, settings=settings, parallelism=3)
    assert dataset.meta.grown is not None
    assert digest_of(dataset) == EXPECTED["grown"]
