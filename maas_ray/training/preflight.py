"""Preflight: everything about a training run that can be checked and computed before a worker starts."""

from typing import Any

from maas_ray.data.dataset import PreparedDataset, open_dataset
from maas_ray.settings import Settings
from maas_ray.tasks.base import type_of
from maas_ray.training.deepspeed.batch import batch_geometry, with_micro_batch
from maas_ray.training.deepspeed.check import check_on_cpu, check_with_deepspeed
from maas_ray.training.deepspeed.document import value_at
from maas_ray.training.deepspeed.resolve import resolve
from maas_ray.training.deepspeed.sections import without_effect
from maas_ray.training.plan import Plan, default_lanes
from maas_ray.training.runs.identity import couples_rows
from maas_ray.training.spec import TrainSpec
from maas_ray.training.trainable import check_trainable


def open_for(spec: TrainSpec, settings: Settings) -> PreparedDataset:
    """The dataset of a spec, for whose task the network must be suitable.

    Raises:
        SpecError: the network does not support the dataset's task.
        NotFoundError: the dataset does not exist.
    """
    with spec.at("dataset"):
        dataset = open_dataset(settings, spec.dataset)
        dataset.check_unchanged()
    if not isinstance(spec.network, dataset.task.networks) and spec.network.own_source is None:
        known = ", ".join([*map(type_of, dataset.task.networks), "an import path `module:Name` of your own"])
        raise spec.refuse(
            "network.type",
            f"{spec.network.type!r} does not support {dataset.task.spec.type}; choose one of {known}.",
            code="network_unsuitable",
        )
    return dataset


def with_defaults(spec: TrainSpec, dataset: PreparedDataset) -> TrainSpec:
    """A spec with the defaults that depend on its dataset: rows of a pass by their tokens, unless rows are coupled."""
    task = dataset.task
    if not task.tokens_per_row or couples_rows(spec.network, task):
        return spec
    return with_micro_batch(spec, task.tokens_per_row)


def check_network(spec: TrainSpec, dataset: PreparedDataset) -> list[str]:
    """Check that the network can be built for the dataset's task; gives lines about what a user may not expect of it.

    Raises:
        DataError: it cannot be built.
        PreflightError: DeepSpeed cannot train it; checked here for a network of the user's own.
    """
    lines = spec.network.check(dataset.task)
    if spec.network.own_source is not None:
        check_trainable(spec.network.skeleton(dataset.task), _configuration(spec, total_steps=1))
    return lines


def make_plan(spec: TrainSpec, dataset: PreparedDataset, *, lanes: int | None = None) -> Plan:
    """The division of the training split into steps and workers.

    Args:
        spec: the run's.
        dataset: the prepared dataset.
        lanes: lanes that the run began with. None: it is new.
    """
    batch_size = batch_geometry(spec, spec.max_workers).batch
    steps_of_units = spec.max_units and -(-spec.max_units // (batch_size * dataset.task.units_per_row))
    return Plan(
        sizes=dataset.group_sizes("train"),
        batch_size=batch_size,
        lanes=lanes or default_lanes(batch_size, spec.max_workers),
        epochs=spec.epochs,
        seed=spec.seed,
        max_steps=min((limit for limit in (spec.max_steps, steps_of_units) if limit), default=None),
    )


def check_deepspeed(spec: TrainSpec, plan: Plan) -> list[str]:
    """Let DeepSpeed read the configuration; gives warnings about sections that have no effect.

    Raises:
        SpecError: DeepSpeed refuses it.
    """
    config = _configuration(spec, plan.total_steps)
    _check_schedule(spec, config, plan.total_steps)
    with spec.at("deepspeed"):
        unread = check_with_deepspeed(config, plan.total_steps)
    if spec.device == "cpu":
        check_without_gpus(spec)
    return without_effect(spec.deepspeed, unread)


def check_without_gpus(spec: TrainSpec) -> None:
    """Check that DeepSpeed can run the configuration in workers that have no GPU.

    Raises:
        SpecError: it cannot.
    """
    with spec.at("deepspeed"):
        check_on_cpu(_configuration(spec, total_steps=1))


def _configuration(spec: TrainSpec, total_steps: int) -> dict[str, Any]:
    """DeepSpeed's configuration, as far as it does not depend on the network or the device."""
    return resolve(spec, workers=spec.max_workers, total_steps=total_steps, hidden_size=None, on_cpu=False)


def _check_schedule(spec: TrainSpec, config: dict[str, Any], steps: int) -> None:
    """Refuse a schedule that ends before the run, as one of a copied document may.

    Raises:
        SpecError: it ends before.
    """
    params = value_at(config, ("scheduler", "params")) or {}
    for key in ("total_num_steps", "total_steps"):  # DeepSpeed's schedulers, Torch's OneCycleLR
        ends = params.get(key)
        if isinstance(ends, int) and ends < steps:
            raise spec.refuse(
                "deepspeed",
                f"deepspeed.scheduler.params.{key} is {ends:,}, but the run has {steps:,} steps: the rest would not be "
                'trained, or at the last learning rate, or at 0. Write "auto", or remove it.',
                code="schedule_too_short",
            )
