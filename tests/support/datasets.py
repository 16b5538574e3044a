"""Prepared datasets made by hand, in a second and without Ray, for tests of what reads them."""

import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from maas_ray import storage
from maas_ray.data.dataset import KIND, PreparedDataset, dataset_home
from maas_ray.data.manifest import Counts, DatasetMeta, Shard, Split, StoredColumn
from maas_ray.data.shards import from_numpy
from maas_ray.settings import Settings
from maas_ray.tasks import Task
from maas_ray.tasks.text.generation import TextGenerationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from maas_ray.tasks.vision.classification import ImageClassificationSpec

ROW_GROUPS = 16


def text_dataset(settings: Settings, name: str, *, vocab_size: int = 512, length: int = 64) -> PreparedDataset:
    """Real Python source: the standard library's `json` and `email` packages."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted([*library.glob("json/*.py"), *library.glob("email/*.py")])
    rows = [{"text": path.read_text(encoding="utf-8")} for path in files]
    spec = TextGenerationSpec(tokenizer=FittedTokenizer(vocab_size=vocab_size), sequence_length=length)
    task = spec.fit(rows)
    tokens = np.concatenate(task.encode(rows)["input_ids"])
    sequences = tokens[: len(tokens) // length * length].reshape(-1, length)
    return _publish(settings, name, task, {"input_ids": sequences})


def digits_dataset(settings: Settings, name: str) -> PreparedDataset:
    """Scikit-learn's scanned digits: 1,797 grey images of 8×8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = [
        {"image": (image * 255 / 16).astype(np.uint8)[..., None], "label": str(label)}
        for image, label in zip(digits.images, digits.target, strict=True)
    ]
    task = ImageClassificationSpec().fit(rows)
    return _publish(settings, name, task, task.encode(rows))


def _publish(settings: Settings, name: str, task: Task, columns: dict[str, np.ndarray]) -> PreparedDataset:
    """Shuffle, split 80/10/10, write, commit."""
    rows = len(next(iter(columns.values())))
    order = np.random.default_rng(0).permutation(rows)
    cuts = {"train": (0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        (directory / "task").mkdir()
        task.save(directory / "task")
        splits = {
            split: _write(
                directory, split, task, {k: v[order[int(low * rows) : int(high * rows)]] for k, v in columns.items()}
            )
            for split, (low, high) in cuts.items()
        }
        meta = DatasetMeta(
            name=name,
            fingerprint=storage.artifact_digest(name, (), {}),
            spec={},
            columns={c: StoredColumn(dtype=s.dtype, shape=s.shape) for c, s in task.stored.items()},
            splits=splits,
            counts=Counts(
                read=rows, dropped={}, duplicates=0, quarantined=0, kept={s: split.rows for s, split in splits.items()}
            ),
        )
        artifact = storage.publish(directory, dataset_home(settings, name), KIND, meta.document())
    return PreparedDataset(artifact)


def _write(directory: Path, split: str, task: Task, columns: dict[str, Any]) -> Split:
    path = f"{split}/part-00000.parquet"
    (directory / split).mkdir()
    rows = len(next(iter(columns.values())))
    size = max(1, -(-rows // ROW_GROUPS))
    groups = []
    writer = None
    for start in range(0, rows, size):
        part = {name: values[start : start + size] for name, values in columns.items()}
        count = len(next(iter(part.values())))
        table = from_numpy({"index": np.arange(start, start + count), **part}, task.stored)
        writer = writer or pq.ParquetWriter(directory / path, table.schema, write_page_checksum=True)
        writer.write_table(table)
        groups.append(count)
    writer.close()
    return Split(shards=(Shard(path=path, start=0, row_groups=tuple(groups)),))
