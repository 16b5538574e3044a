"""Near-duplicates over many files and blocks: chains join, splits are apart, and the cut makes no difference."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from maas_ray import PrepareSpec
from maas_ray.data.dataset import PreparedDataset
from maas_ray.data.dedup.minhash import NearDuplicates, band_keys
from maas_ray.data.kept_columns import stored_columns, texts
from maas_ray.data.names import SPLITS
from maas_ray.data.prepare import prepare
from maas_ray.settings import Settings

pytestmark = pytest.mark.usefixtures("cluster")
NEAR = NearDuplicates(threshold=0.6)
FILES, CHAINS, LINKS, LONERS = 12, 10, 8, 100
WORDS = 120


def words(name: int) -> list[str]:
    return [f"w{number}" for number in np.random.default_rng(name).integers(0, 5000, WORDS)]


def chain(name: int) -> list[list[str]]:
    """Texts, each like the one before it, of which the first and the last share no run of words."""
    stream = words(name)
    for link in range(1, LINKS):
        stream += words(1000 * (name + 1) + link)[: WORDS // 12]
    return [stream[start : start + WORDS] for start in range(0, LINKS * WORDS // 12, WORDS // 12)]


def alike(one: list[str], other: list[str]) -> bool:
    return bool(np.isin(band_keys(" ".join(one), NEAR), band_keys(" ".join(other), NEAR)).any())


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Chains and texts that are like no other, all through each other; every third row is named for testing."""
    chains = [chain(name) for name in range(CHAINS)]
    for links in chains:
        assert all(alike(one, other) for one, other in pairwise(links))
        assert not alike(links[0], links[-1])
    found = [
        {"name": f"chain {name} link {link}", "text": " ".join(text)}
        for name, links in enumerate(chains)
        for link, text in enumerate(links)
    ]
    found += [{"name": f"alone {number}", "text": " ".join(words(10**6 + number))} for number in range(LONERS)]
    order = np.random.default_rng(0).permutation(len(found))
    return [
        found[place] | {"label": "ab"[number % 2], "fold": "test" if number % 3 == 0 else "train"}
        for number, place in enumerate(order)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    directory = tmp_path_factory.mktemp("near")
    for part in range(FILES):
        lines = [json.dumps(row) + "\n" for row in rows[part::FILES]]
        (directory / f"{part:02d}.jsonl").write_text("".join(lines))
    return directory


def prepared(files: Path, home: Path, parallelism: int, **splits: Any) -> PreparedDataset:
    document = {
        "dataset": "near",
        "task": {"type": "text-classification", "tokenizer": {"vocab_size": 300}, "max_length": 8},
        "sources": [{"format": "jsonl", "path": str(files)}],
        "deduplicate": {"near": NEAR.document()},
        "splits": splits,
        "keep": ["name"],
    }
    dataset = prepare(PrepareSpec.parse(document), settings=Settings(home=str(home)), parallelism=parallelism)
    assert dataset.meta.counts.adds_up()
    return dataset


def kept(dataset: PreparedDataset) -> dict[str, list[str]]:
    """Names by split, in the order that they are stored in."""
    column = next(iter(stored_columns(["name"])))
    return {
        split: [name for batch in dataset.read(dataset.row_groups(split), ["name"]) for name in texts(batch[column])]
        for split in SPLITS
        if dataset.meta.splits[split].rows
    }


def removed(dataset: PreparedDataset) -> list[dict[str, Any]]:
    paths = [entry.path for entry in dataset.artifact.files if entry.path.startswith("removed/")]
    found = [row for path in paths for row in pq.read_table(f"{dataset.uri}/{path}").to_pylist()]
    return sorted(found, key=lambda row: row["row"])


def test_one_row_of_each_chain_survives_however_the_work_is_cut(
    files: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    datasets = [prepared(files, tmp_path / str(parallelism), parallelism, column="fold") for parallelism in (1, 2, 5)]
    dataset = datasets[0]
    for other in datasets[1:]:
        assert kept(other) == kept(dataset)
        assert removed(other) == removed(dataset)
        assert other.meta.counts == dataset.meta.counts
    assert dataset.meta.counts.near_duplicates == CHAINS * (LINKS - 1)

    # One of each chain, one to test with where it has one; all that are alone.
    where = {name: split for split, names in kept(dataset).items() for name in names}
    folds = {row["name"]: row["fold"] for row in rows}
    assert all(folds[name] == split for name, split in where.items())
    for number in range(CHAINS):
        links = [name for name in folds if name.startswith(f"chain {number} ")]
        (one,) = set(links) & set(where)
        assert where[one] == ("test" if "test" in [folds[name] for name in links] else "train")
    assert sum(name.startswith("alone") for name in where) == LONERS
    # A dropped row is reported with the row that is kept in its place.
    told = removed(dataset)
    at = {
        (str(files / f"{part:02d}.jsonl"), place): row["name"]
        for part in range(FILES)
        for place, row in enumerate(rows[part::FILES], start=1)
    }
    stays = {row["row"]: at[row["path"], row["position"]] for row in told if not row["fate"]}
    gone = [(at[row["path"], row["position"]], stays[row["like"]]) for row in told if row["fate"] == "near-duplicate"]
    assert {one for one, _ in gone} == set(folds) - set(where)
    assert all(one.split(" link ")[0] == other.split(" link ")[0] and other in where for one, other in gone)
    assert all(row["excerpt"] for row in told if row["fate"])


def test_near_duplicates_are_never_in_two_splits(files: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    found = kept(prepared(files, tmp_path, 3, validation=0.25, test=0.25))
    assert min(map(len, found.values())) > 10
    assert set(found) == set(SPLITS)
    said = {row["name"]: row["text"] for row in rows}
    keys = {
        split: {int(key) for name in names for key in band_keys(said[name], NEAR)} for split, names in found.items()
    }
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["test"] & keys["validation"]
