"""The end of a run: from its last checkpoint to a registered version. Every step is idempotent."""

import json
from functools import partial
from math import prod
from pathlib import Path

from maas_ray import storage
from maas_ray.errors import TrainingError
from maas_ray.registry.bundle import Bundle, BundleMeta, Lineage, publish_bundle
from maas_ray.registry.versions import ModelVersion
from maas_ray.terminal.lines import say
from maas_ray.training.checkpoints.catalog import best
from maas_ray.training.checkpoints.loading import fetch
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.export import export
from maas_ray.training.model_card import left_out_in_words, model_card
from maas_ray.training.plan import Plan
from maas_ray.training.runs.record import TAG_PACKAGES, TAG_REVISION, TrainingRun

Checkpoint = tuple[str, Position]
"""URI and position of a whole checkpoint."""


def finish(run: TrainingRun, plan: Plan, last: Checkpoint | None) -> tuple[Bundle, ModelVersion]:
    """Export a checkpoint, publish it as a bundle and register the bundle.

    Args:
        run: the run.
        plan: its plan, which the ledger must match.
        last: its newest whole checkpoint. None: there is none.

    Raises:
        TrainingError: the last checkpoint is gone or damaged, or a row was left out or trained on twice.
    """
    uri, position = _chosen(run, last)
    if same := _version_at(run, position):
        return same.open(), same
    _check_ledger(run, plan, position)
    with storage.scratch("maas-export-") as scratch:
        source = fetch(uri, scratch / "saved")
        say("consolidating shards and publishing the bundle")
        directory = scratch / "bundle"
        directory.mkdir()
        export(source, run.dataset, run.spec.network, directory)
        meta = _bundle_meta(run, position)
        rows = {name: split.rows for name, split in run.dataset.meta.splits.items()}
        card = model_card(meta, run.dataset.task, parameters=_parameters_in(directory), rows=rows, position=position)
        (directory / "README.md").write_text(card, encoding="utf-8")
        bundle = publish_bundle(run.settings, directory, meta, run.spec.checkpoint.retry_seconds, say)
    register = partial(run.registry.register, bundle, run_id=run.run_id, alias=run.spec.alias)
    return bundle, storage.retry_with_backoff(register, run.spec.checkpoint.retry_seconds, say)


def _chosen(run: TrainingRun, last: Checkpoint | None) -> Checkpoint:
    """The checkpoint that becomes the version."""
    if last is None or not last[1].ended:
        start = f"step {last[1].step:,}" if last else "the beginning"
        raise TrainingError(
            f"run {run.name} has trained to the end, but its last checkpoint is not whole. Start it again: it resumes "
            f"from {start}.",
            code="last_checkpoint_incomplete",
        )
    lowest = best(run.home, say) if run.spec.checkpoint.select == "best" else None
    if lowest and lowest[0] != last[0]:
        say(f"the lowest validation loss was at step {lowest[1].step:,}; that is what is exported")
    return lowest or last


def _version_at(run: TrainingRun, position: Position) -> ModelVersion | None:
    """The version that was exported from the same checkpoint when the run ended with another `select`."""
    for version in run.registry.versions(run.spec.model):
        if version.lineage.run_id == run.run_id and version.lineage.step == position.step:
            say(f"{version.reference} was exported from the checkpoint at step {position.step:,} already")
            return version
    return None


def _check_ledger(run: TrainingRun, plan: Plan, position: Position) -> None:
    """Check that the run trained on every row of every epoch once, or says that it was left out, and on no other."""
    due = plan.ledger_at(position.step)
    if position.ledger + position.left_out != due:
        raise TrainingError(
            f"run {run.name} has trained on {position.rows:,} rows and left out {position.left_out_rows:,}, but "
            f"{position.step:,} steps take {due.rows:,} rows, each once (the ledger differs from the plan). This is a "
            "bug; no version was registered.",
            code="ledger_differs",
        )
    say(f"{position.rows:,} rows trained on, each of them once in an epoch (ledger {position.digest:016x})")
    if position.left_out_steps:
        say(left_out_in_words(position))


def _bundle_meta(run: TrainingRun, position: Position) -> BundleMeta:
    lineage = Lineage(
        dataset=run.dataset.name,
        dataset_fingerprint=run.dataset.fingerprint,
        dataset_uri=run.dataset.uri,
        measured_rows=_measured_rows(run, position),
        run=run.name,
        run_id=run.run_id,
        step=position.step,
        # Recorded when the run began, so that a second attempt to finish it publishes the same bundle.
        code_revision=run.tags[TAG_REVISION],
        packages=json.loads(run.tags[TAG_PACKAGES]),
        spec=run.spec.document(),
        deepspeed=position.deepspeed,
    )
    return BundleMeta(name=run.spec.model, task=run.dataset.task.spec.type, metrics=position.metrics, lineage=lineage)


def _measured_rows(run: TrainingRun, position: Position) -> dict[str, int]:
    """Rows that each measured split was measured on, the first ones of the split."""
    validation = run.spec.validation
    limit = validation.max_rows_at_end if position.ended else validation.max_rows
    splits = {name.partition("/")[0]: run.dataset.split(name.partition("/")[0]).rows for name in position.metrics}
    return {split: min(rows, limit or rows) for split, rows in splits.items()}


def _parameters_in(directory: Path) -> int:
    """Parameters in a directory's safetensors files."""
    from safetensors import safe_open

    total = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as weights:
            total += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total
