"""The outcomes of every row of a split, computed on the cluster.

Ray Data sends row groups to actors that each hold the model. It restarts an actor that dies, and repeats its unfinished
row groups. Only outcomes return to the driver; they are small compared with the rows, and in the order of the rows.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maas_ray.data.dataset import PreparedDataset, RowGroup
from maas_ray.data.kept_columns import stored_columns, texts
from maas_ray.errors import DataError
from maas_ray.evaluation.spec import EvaluateSpec
from maas_ray.registry.bundle import Bundle
from maas_ray.tasks.task import Outcomes, joined, outcomes_of
from maas_ray.terminal.lines import progress

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Measured:
    """Outcomes of rows, in the order of their indices.

    Args:
        outcomes: the task's.
        kept: values of each requested column, str [n].
    """

    outcomes: Outcomes
    kept: dict[str, np.ndarray]


def measure(spec: EvaluateSpec, bundle: Bundle, dataset: PreparedDataset, label: str) -> Measured:
    """The outcomes of a model for every row of `spec.split`. This process must have joined a cluster.

    Raises:
        CorruptError: a row group is damaged.
        DataError: the outcome of a row is not a finite number.
    """
    import ray

    from maas_ray.data.pipeline.blocks import quiet, run, tables
    from maas_ray.data.pipeline.objects import packed, unpacked

    groups = dataset.row_groups(spec.split)
    with progress(f"evaluating {label}, row groups", len(groups)) as shown, quiet(0):
        blocks = run(
            [ray.put(packed([group])) for group in groups],
            _Measurer,
            lambda done, _: shown.update(done),
            fn_constructor_args=(bundle, dataset, spec),
            concurrency=min(spec.workers, len(groups)),
            num_cpus=spec.cpus_per_worker,
            num_gpus=spec.gpus_per_worker,
        )
        parts = [part for table in tables(blocks) for part in unpacked(table)]
    rows = joined(parts)
    order = np.argsort(rows.pop(_INDEX), kind="stable")
    if not np.array_equal(np.sort(order), np.arange(dataset.split(spec.split).rows)):
        raise RuntimeError(f"{label}: {len(order):,} rows were measured, not the rows of {dataset.name}/{spec.split}")
    rows = {name: values[order] for name, values in rows.items()}
    kept = {column: rows.pop(_KEPT + column) for column in spec.slices}
    _check_numbers(rows, label)
    return Measured(rows, kept)


_INDEX, _KEPT = "index of the row", "value of the column "


def _check_numbers(outcomes: Outcomes, label: str) -> None:
    for name, values in outcomes.items():
        if values.dtype.kind == "f":
            rows = values.reshape(len(values), -1)
            broken = np.flatnonzero(~np.isfinite(rows).all(1))
            if len(broken):
                first = rows[broken[0]]
                raise DataError(
                    f"{label}: `{name}` is not finite for {len(broken):,} of {len(values):,} rows ({name} "
                    f"{first[~np.isfinite(first)][0]} for row {broken[0]:,} of the split). The model's weights are "
                    "broken, or the rows hold values unlike its training data, such as numbers that are far too large.",
                    code="outcome_not_finite",
                )


class _Measurer:
    """An actor that holds the model and turns a block of row groups into a block of outcomes."""

    def __init__(self, bundle: Bundle, dataset: PreparedDataset, spec: EvaluateSpec) -> None:
        import torch

        directory = bundle.fetch()
        self.task = bundle.load_task(directory)
        self.device = torch.device("cuda" if spec.gpus_per_worker else "cpu")
        if not spec.gpus_per_worker:
            torch.set_num_threads(max(1, int(spec.cpus_per_worker)))
        self.model = self.task.load_model(directory).to(self.device)
        self.dataset, self.spec = dataset, spec

    def __call__(self, block: "pa.Table") -> Iterator["pa.Table"]:
        from maas_ray.data.pipeline.objects import packed

        groups: list[RowGroup] = [pickle.loads(item) for item in block["item"].to_pylist()]  # noqa: S301  our own
        for group in groups:
            yield packed([joined(self._parts(group))])

    def _parts(self, group: RowGroup) -> Iterator[Outcomes]:
        columns = self.spec.slices
        for stored in self.dataset.batches([group], self.spec.batch_size, kept=columns):
            part: dict[str, Any] = outcomes_of(self.task, self.model, [stored], self.device)
            kept = {
                _KEPT + column: texts(stored[name])
                for column, name in zip(columns, stored_columns(columns), strict=True)
            }
            yield part | kept | {_INDEX: stored["index"]}
