"""A prepared dataset gives back what was stored, and says so when it cannot."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from maas_ray import storage
from maas_ray.data.dataset import dataset_home, open_dataset
from maas_ray.data.names import POINTER
from maas_ray.data.shards import from_numpy, to_numpy, write_table
from maas_ray.errors import CorruptError, DataError, NotFoundError
from maas_ray.settings import Settings
from maas_ray.tasks import Column
from tests.support.datasets import digits_dataset, text_dataset
from tests.support.errors import raises

COLUMNS = {"pixels": Column("uint8", (3, 2, 2)), "ids": Column("uint16", (5,)), "label": Column("int64")}


def batch(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "index": np.arange(rows),
        "pixels": rng.integers(0, 256, (rows, 3, 2, 2), dtype=np.uint8),
        "ids": rng.integers(0, 1 << 16, (rows, 5), dtype=np.uint16),
        "label": rng.integers(-9, 9, rows),
    }


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_columns_survive_the_way_through_arrow(rows: int) -> None:
    stored = batch(rows)
    loaded = to_numpy(from_numpy(stored, COLUMNS), COLUMNS)
    assert list(loaded) == list(stored)
    for name, values in stored.items():
        assert loaded[name].dtype == values.dtype
        assert np.array_equal(loaded[name], values)
        assert loaded[name].flags.writeable  # torch.from_numpy warns of what is not


def test_slices_and_several_chunks_become_arrays(tmp_path: Path) -> None:
    stored = batch(10)
    table = from_numpy(stored, COLUMNS)
    for some in (table[3:8], pa.concat_tables([table[3:5], table[5:8]])):
        for name, values in to_numpy(some, COLUMNS).items():
            assert np.array_equal(values, stored[name][3:8])


def test_columns_that_are_not_stored_are_ignored() -> None:
    table = from_numpy({**batch(4), "position": np.arange(4)}, COLUMNS)
    assert table["position"].to_pylist() == [0, 1, 2, 3]
    assert list(to_numpy(table, COLUMNS)) == ["index", *COLUMNS]


def test_written_tables_carry_their_digest(tmp_path: Path) -> None:
    entry = write_table(from_numpy(batch(100), COLUMNS), str(tmp_path), "train/a.parquet", 30)
    assert entry == storage.file_entry(tmp_path / "train/a.parquet", "train/a.parquet")
    metadata = pa.parquet.read_metadata(tmp_path / "train/a.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [30, 30, 30, 10]


def test_read_gives_every_row_in_order(settings: Settings) -> None:
    dataset = pickle.loads(pickle.dumps(text_dataset(settings, "text")))
    groups = dataset.row_groups("train")
    index = np.concatenate([rows["index"] for rows in dataset.read(groups)])
    assert np.array_equal(index, np.arange(dataset.split("train").rows))
    (middle,) = dataset.read(groups[5:6])
    assert middle["index"][0] == groups[5].start


@pytest.mark.parametrize(("low", "high", "size"), [(0, None, 7), (30, 95, 16), (0, 3, 16), (5, 5, 4)])
def test_batches_are_the_rows_between_two_indices(settings: Settings, low: int, high: int | None, size: int) -> None:
    dataset = digits_dataset(settings, "digits")
    batches = list(dataset.batches(dataset.row_groups("validation"), size, low, high))
    wanted = list(range(low, dataset.split("validation").rows if high is None else high))
    assert [index for batch in batches for index in batch["index"]] == wanted
    assert all(len(batch["label"]) == size for batch in batches[:-1])


def test_a_flipped_bit_is_found_by_reading(settings: Settings) -> None:
    dataset = text_dataset(settings, "text")
    path = Path(dataset.uri) / dataset.split("train").shards[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with raises(CorruptError, "corrupt", "part-00000", ".parquet, row group "):
        list(dataset.read(dataset.row_groups("train")))


def test_unknown_datasets_and_empty_splits_are_errors(settings: Settings) -> None:
    dataset = text_dataset(settings, "text")
    storage.write_bytes(storage.join(settings.storage, "datasets", "failed", "0123", "work", "x"), b"")
    storage.write_json(storage.join(dataset_home(settings, "text"), POINTER), {"fingerprint": dataset.fingerprint})
    with raises(NotFoundError, "dataset_not_found", "'other'", "datasets: text.", "maas prepare"):
        open_dataset(settings, "other")
    with raises(DataError, "split_empty", "'extra'", "train, validation, test"):
        dataset.split("extra")
    assert open_dataset(settings, dataset.uri).fingerprint == dataset.fingerprint
    assert dataset.uri.startswith(dataset_home(settings, "text"))
