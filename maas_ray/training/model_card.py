"""The model card: a bundle's README, made from recorded facts alone."""

import json
from typing import Any

from maas_ray.registry.bundle import BundleMeta
from maas_ray.tasks import Task
from maas_ray.training.checkpoints.position import Position


def model_card(meta: BundleMeta, task: Task, *, parameters: int, rows: dict[str, int], position: Position) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        meta: the bundle's.
        task: the fitted task.
        parameters: number of trained parameters.
        rows: rows of the dataset by split.
        position: the run's position in the checkpoint that became the model.
    """
    lineage = meta.lineage
    lines = [
        "---",
        f"pipeline_tag: {meta.task}",
        "library_name: " + ("transformers" if task.kind == "generate" else "pytorch"),
        "tags: [maas-ray, deepspeed]",
        "---",
        f"# {meta.name}",
        "",
        f"A `{meta.task}` model of {parameters:,} parameters, trained from dataset `{lineage.dataset}`.",
        "",
        "## Metrics",
        "",
        "| split | metric | value |",
        "|---|---|---|",
        *(
            f"| {name.partition('/')[0]} | {name.partition('/')[2]} | {value:.6g} |"
            for name, value in sorted(meta.metrics.items())
        ),
        "",
        "## Data",
        "",
        f"Dataset `{lineage.dataset}`, fingerprint `{lineage.dataset_fingerprint}`: "
        + ", ".join(f"{count:,} rows for {split}" for split, count in rows.items())
        + ".",
        *(["", left_out_in_words(position)] if position.left_out_steps else []),
        "",
        "## Lineage",
        "",
        f"- Run: `{lineage.run}` (MLflow run `{lineage.run_id}`)",
        f"- Code revision: {f'`{lineage.code_revision}`' if lineage.code_revision else 'not in a git checkout'}",
        "- Packages: " + ", ".join(f"{name} {version}" for name, version in sorted(lineage.packages.items())),
        "",
        "## Signature",
        "",
        *_code(task.signature()),
        "",
        "## Specification",
        "",
        *_code(lineage.spec),
    ]
    return "\n".join(lines) + "\n"


def left_out_in_words(position: Position) -> str:
    """A sentence about the steps that were left out."""
    steps = "1 step" if position.left_out_steps == 1 else f"{position.left_out_steps:,} steps"
    return (
        f"{position.left_out_rows:,} rows of {steps} were left out of the training, because gradients were not finite."
    )


def _code(document: Any) -> list[str]:
    return ["```json", json.dumps(document, indent=2), "```"]
