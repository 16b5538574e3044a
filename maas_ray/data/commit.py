"""Committing a dataset, and removing the files of attempts that did not commit."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute

from maas_ray import storage
from maas_ray.data.cleaning import saved
from maas_ray.data.dataset import (
    INDEX_DIRECTORY,
    INPUTS_DIRECTORY,
    KIND,
    QUARANTINE_DIRECTORY,
    REMOVED_DIRECTORY,
    TASK_DIRECTORY,
    PreparedDataset,
)
from maas_ray.data.manifest import DatasetMeta, Split, StoredColumn
from maas_ray.data.names import SPLITS
from maas_ray.data.pipeline.build import Built
from maas_ray.data.plan import Plan
from maas_ray.data.profile import PROFILE_FILE, merge, to_json
from maas_ray.data.shards import write_table
from maas_ray.data.spec import PrepareSpec
from maas_ray.errors import ConflictError
from maas_ray.redact import without_secrets
from maas_ray.spec import digest_of
from maas_ray.storage import FileEntry


def commit(spec: PrepareSpec, plan: Plan, built: Built, attempt: str) -> PreparedDataset:
    """Commit what an attempt built. If the dataset grows, its old files and the new ones become one dataset."""
    uri, parent = plan.uri, plan.parent
    entries, splits, counts, inputs = [*built.files], built.splits, built.counts, built.inputs
    if parent is not None:
        before, taken = parent.take_over(uri, attempt)
        entries += before
        splits = {split: Split(shards=taken[split].shards + splits[split].shards) for split in SPLITS}
        counts = parent.dataset.meta.counts.plus(counts)
        inputs = pa.concat_tables([parent.inputs, inputs])
    entries.append(write_table(inputs, uri, f"{INPUTS_DIRECTORY}/part-{attempt}.parquet", 1 << 16))
    profile = built.profile if parent is None else merge([parent.profile(), built.profile])
    contents = {f"{TASK_DIRECTORY}/{name}": content for name, content in built.task_files.items()}
    entries += _upload(contents | {PROFILE_FILE: to_json(profile).encode()}, uri)
    meta = DatasetMeta(
        name=spec.dataset,
        fingerprint=plan.fingerprint,
        spec=without_secrets(spec.document()),
        columns={name: StoredColumn(dtype=c.dtype, shape=c.shape) for name, c in built.task.stored.items()},
        splits=splits,
        counts=counts,
        kept=spec.keep,
        cleaning=tuple(saved(built.steps)),
        parent=None if parent is None else parent.dataset.fingerprint,
        grown=None if parent is None else built.counts,
        recipe=digest_of(plan.recipe),
        pipeline=plan.recipe["pipeline"],
        input=plan.input,
        parts=pa.compute.sum(inputs["parts"]).as_py(),
    )
    try:
        artifact = storage.commit(uri, KIND, tuple(entries), meta.document())
    except ConflictError:
        # Another attempt was faster. It had the same input, so it has the same rows.
        artifact = storage.open_artifact(uri, KIND)
        discard(uri, attempt)
    return PreparedDataset(artifact)


def _upload(contents: dict[str, bytes], uri: str) -> list[FileEntry]:
    """Upload files whose bytes are the same in every attempt, so that another attempt's copy is as good as this one."""
    entries = []
    with tempfile.TemporaryDirectory() as directory:
        for path, content in contents.items():
            local = Path(directory) / path
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(content)
            entries.append(FileEntry(path, *storage.upload(local, storage.join(uri, path))))
    return entries


def discard(uri: str, attempt: str) -> None:
    """Remove the files of an attempt."""
    for path in _written(uri):
        if attempt in path:
            storage.delete(storage.join(uri, path))


def sweep(dataset: PreparedDataset) -> None:
    """Remove the files that killed attempts left beside a committed dataset."""
    committed = {entry.path for entry in dataset.artifact.files}
    for path in _written(dataset.uri):
        if path not in committed:
            storage.delete(storage.join(dataset.uri, path))


def _written(uri: str) -> list[str]:
    directories = (*SPLITS, QUARANTINE_DIRECTORY, REMOVED_DIRECTORY, INDEX_DIRECTORY, INPUTS_DIRECTORY)
    return [f"{name}/{file}" for name in directories for file in storage.list_directory(storage.join(uri, name))]
