"""Datasets that grow, and preparations that were interrupted."""

import ctypes
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from maas_ray import PrepareSpec, prepare
from maas_ray.data.dataset import PreparedDataset, dataset_home, open_dataset
from maas_ray.data.names import SPLITS
from maas_ray.errors import DataError
from maas_ray.settings import Settings
from maas_ray.training.plan import Ledger, Plan
from tests.support.errors import raises

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def place(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path / "home"))


def sentence(rng: random.Random) -> str:
    return " ".join(
        rng.choice(["alpha", "beta", "gamma", "delta", "omega"]) + str(rng.randrange(40)) for _ in range(30)
    )


def write_texts(directory: Path, numbers: range) -> None:
    directory.mkdir(exist_ok=True)
    for number in numbers:
        (directory / f"{number:03d}.txt").write_text(sentence(random.Random(number)))


def text_spec(path: Path, **changes: Any) -> PrepareSpec:
    return PrepareSpec.parse(
        {
            "dataset": "text",
            "task": {"type": "text-generation", "tokenizer": {"vocab_size": 300}, "sequence_length": 32},
            "sources": [{"format": "text", "path": str(path)}],
            "splits": {"validation": 0.2, "test": 0.2},
            **changes,
        }
    )


def labels_spec(path: Path, **changes: Any) -> PrepareSpec:
    return PrepareSpec.parse(
        {
            "dataset": "labels",
            "task": {
                "type": "tabular-classification",
                "target": "kind",
                "features": ["x", "y"],
            },
            "sources": [{"format": "csv", "path": str(path)}],
            "splits": {"validation": 0.2, "test": 0.2},
            **changes,
        }
    )


def write_table(path: Path, numbers: range, kinds: tuple[str, ...] = ("a", "b")) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = [f"{number},{number * 7 % 13},{kinds[number % len(kinds)]}" for number in numbers]
    path.write_text("\n".join(["x,y,kind", *rows]) + "\n")


def content(dataset: PreparedDataset) -> dict[str, dict[str, np.ndarray]]:
    """Every stored value, `position` among them, in order."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for split in SPLITS:
        batches = list(dataset.read(dataset.row_groups(split)))
        found[split] = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        shards = [pq.read_table(f"{dataset.uri}/{shard.path}") for shard in dataset.split(split).shards]
        found[split]["position"] = np.concatenate([shard["position"].to_numpy() for shard in shards])
    return found


def assert_grown(old: PreparedDataset, new: PreparedDataset) -> None:
    """The old rows are the first of the new dataset, to the byte; what was fitted is the same; files are whole."""
    before, after = content(old), content(new)
    for split in SPLITS:
        rows = old.split(split).rows
        for name, values in before[split].items():
            assert np.array_equal(values, after[split][name][:rows]), (split, name)
        assert np.array_equal(after[split]["index"], np.arange(new.split(split).rows))
        assert np.array_equal(np.sort(after[split]["position"]), np.arange(new.split(split).rows))
    tasks = [[e for e in one.artifact.files if e.path.startswith("task/")] for one in (old, new)]
    assert tasks[0] == tasks[1]
    assert new.meta.parent == old.fingerprint
    assert new.meta.counts.adds_up()
    new.artifact.verify()


@contextmanager
def opened(directory: Path) -> Iterator[Counter[str]]:
    """How often each file of a directory is opened meanwhile, by whatever process: the kernel says so (inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(handle, str(directory).encode(), 0x20) >= 0  # IN_OPEN
    found: Counter[str] = Counter()
    try:
        yield found
        data = b""
        while True:
            try:
                data += os.read(handle, 1 << 16)
            except BlockingIOError:
                break
        place = 0
        while place < len(data):
            _, _, _, length = struct.unpack_from("iIII", data, place)
            if name := data[place + 16 : place + 16 + length].rstrip(b"\0").decode():
                found[name] += 1
            place += 16 + length
    finally:
        os.close(handle)


def test_a_dataset_of_text_grows_twice(place: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    write_texts(source, range(60))
    spec = text_spec(source, deduplicate={"near": {}})
    first = prepare(spec, settings=place)
    write_texts(source, range(60, 90))
    old = (source / "000.txt").read_text()
    (source / "near.txt").write_text(old + " more")
    (source / "same.txt").write_text(old)
    capsys.readouterr()
    with opened(source) as opens:
        second = prepare(spec, settings=place)
    assert set(opens) == {*(f"{number:03d}.txt" for number in range(60, 90)), "near.txt", "same.txt"}
    assert f"growing {first.fingerprint[:16]} by 32 new files, 0.0 MB" in capsys.readouterr().out
    assert_grown(first, second)
    grown = second.meta.grown
    assert grown is not None
    assert (grown.read, grown.duplicates, grown.near_duplicates) == (32, 1, 1)
    # A dropped row names its duplicate, although that row came in an earlier preparation.
    removed = [
        row
        for e in second.artifact.files
        if e.path.startswith("removed/")
        for row in pq.read_table(f"{second.uri}/{e.path}").to_pylist()
    ]
    named = {row["row"]: row["path"] for row in removed if not row["fate"]}
    assert {named[row["like"]] for row in removed if row["fate"]} == {str(source / "000.txt")}

    # Nothing new: it is found again. Once more: the grandparent's rows are as they were.
    assert prepare(spec, settings=place).uri == second.uri
    (source / "again.txt").write_text((source / "070.txt").read_text())
    write_texts(source, range(90, 95))
    third = prepare(spec, settings=place)
    assert_grown(second, third)
    assert_grown_from = content(first)["train"]["input_ids"]
    assert np.array_equal(content(third)["train"]["input_ids"][: len(assert_grown_from)], assert_grown_from)
    assert third.meta.grown is not None
    assert third.meta.grown.duplicates == 1
    # Each is whole without the others.
    import shutil

    shutil.rmtree(first.uri)
    shutil.rmtree(second.uri)
    third.artifact.verify()
    # Training takes every row once.
    plan = Plan(third.group_sizes("train"), batch_size=4, lanes=2, epochs=1, seed=0)
    assert plan.ledger_at(plan.total_steps) == Ledger.of(0, np.arange(third.split("train").rows))
    # Anew from all files it is another dataset.
    fresh = prepare(spec, fresh=True, settings=place)
    assert fresh.meta.parent is None
    assert fresh.fingerprint != third.fingerprint
    assert fresh.meta.counts.read == third.meta.counts.read


def test_a_dataset_that_cannot_grow_is_prepared_from_all_files(
    place: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    write_table(source / "a.csv", range(100))
    first = prepare(labels_spec(source), settings=place)
    write_table(source / "b.csv", range(100, 160))
    second = prepare(labels_spec(source), settings=place)
    assert_grown(first, second)
    # A label that was not learnt is no row to lose in silence.
    write_table(source / "c.csv", range(160, 180), ("a", "c"))
    with raises(DataError, "unlearnt_values", "10 of the new rows", "10 × label 'c'", "--fresh"):
        prepare(labels_spec(source), settings=place)
    assert open_dataset(place, "labels").uri == second.uri
    fresh = prepare(labels_spec(source), fresh=True, settings=place)
    assert fresh.meta.counts.read == 180
    assert fresh.task.class_names == ["a", "b", "c"]  # type: ignore[attr-defined]
    # A file that changed, or one that is gone.
    write_table(source / "c.csv", range(160, 185), ("a", "c"))
    (source / "b.csv").unlink()
    capsys.readouterr()
    anew = prepare(labels_spec(source), settings=place)
    assert "preparing all files again, because c.csv is changed and b.csv is not there" in capsys.readouterr().out
    assert anew.meta.parent is None
    capsys.readouterr()
    prepare(labels_spec(source, seed=1), settings=place)
    assert "preparing all files again, because the spec differs in `seed`" in capsys.readouterr().out


def test_growing_stratifies_new_rows_and_keeps_inputs_in_their_split(place: Settings, tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_table(source / "a.csv", range(100))
    spec = labels_spec(source, splits={"validation": 0.2, "test": 0.2, "stratify": "kind"})
    first = prepare(spec, settings=place)
    # The same inputs with the other label, and new ones.
    write_table(source / "b.csv", range(50, 200), ("b", "a"))
    second = prepare(spec, settings=place)
    assert_grown(first, second)
    found = content(second)
    where: dict[bytes, set[str]] = {}
    for split in SPLITS:
        for row in found[split]["numbers"]:
            where.setdefault(row.tobytes(), set()).add(split)
    assert {len(splits) for splits in where.values()} == {1}


DRIVER = (
    "import sys; from maas_ray import PrepareSpec, Settings, prepare\n"
    "prepare(PrepareSpec.from_text(sys.argv[1], source='test'), settings=Settings(home=sys.argv[2]))"
)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "stage", [pytest.param("removing duplicates", marks=pytest.mark.slow), "encoding", "shuffling and writing"]
)
def test_a_killed_preparation_resumes(
    place: Settings, tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    write_texts(source, range(60))
    spec = text_spec(source)
    with subprocess.Popen(
        [sys.executable, "-u", "-c", DRIVER, json.dumps(spec.document()), place.home], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        said = next((line for line in process.stdout if stage in line), "")
        process.send_signal(signal.SIGKILL)
    assert stage in said
    with opened(source) as opens:
        dataset = prepare(spec, settings=place)
    assert re.search(r"resuming: \d+ of \d+ blocks are already read", capsys.readouterr().out)
    assert set(opens.values()) == {1}  # for their digests; what was read before is not read again
    assert not (Path(dataset.uri) / "work").exists()
    undisturbed = prepare(spec, settings=Settings(home=str(tmp_path / "other")))
    assert undisturbed.fingerprint == dataset.fingerprint
    one, other = content(dataset), content(undisturbed)
    for split in SPLITS:
        for name, values in one[split].items():
            assert np.array_equal(values, other[split][name]), (split, name)
    assert list(Path(dataset_home(place, "text")).glob("*/manifest.json"))
