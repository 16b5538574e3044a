"""The rehearsal of a run's end, before its first step: checkpoint, export, load, the same outputs.

A network that cannot be saved, exported or loaded would otherwise say so after hours. The rehearsal uses the engine
that is about to train, and the same functions as the end of the run. It takes as long as a checkpoint and an export. A
network of more than `MAX_BYTES` is not written: the names and shapes of its weights are compared with those that the
export wants, and its configuration is written.
"""

import uuid
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from maas_ray import storage
from maas_ray.errors import PreflightError
from maas_ray.tasks import Task, load_task
from maas_ray.tasks.base import Outcomes
from maas_ray.training.checkpoints import loading, snapshot
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.collectives import barrier, from_first_rank
from maas_ray.training.export import check_names, export, tied_names
from maas_ray.training.validation.computing import autocasts, compute_as
from maas_ray.training.worker.batches import Batches
from maas_ray.training.worker.job import Job, Rank

MAX_BYTES = 512 << 20
"""Largest network in fp32 that is written: 134 million parameters, such as the smallest GPT-2."""
PREFIX = "rehearsal-"

_TOLERANCE = 1e-4
"""Largest difference in fp32, as a share of the largest output."""
_TOLERANCE_16 = 2e-2
"""Largest difference in 16 bits, as a share of the largest output."""
_ROUNDINGS = 4.0
"""Further difference in 16 bits, in units of the difference that rounding to 16 bits makes."""


def rehearse(engine: Any, job: Job, batches: Batches, rank: Rank, position: Position) -> None:
    """Return if a run could end with a version now. All ranks call it together.

    The random state stays as it is, so that a run computes the same with and without a rehearsal.

    Args:
        engine: DeepSpeed's, which has not taken a step.
        job: the run's.
        batches: makes batches of stored rows.
        rank: this worker.
        position: the run's.

    Raises:
        PreflightError: it could not; raised on every rank alike.
    """
    import torch

    with torch.random.fork_rng([] if rank.on_cpu else [rank.device]):
        whole = 4 * parameters_in(engine.module) <= MAX_BYTES
        problem = _whole(engine, job, batches, rank, position) if whole else _names(engine, job, rank)
    if problem := from_first_rank(problem):
        raise PreflightError(
            f"this run could not end with a version: {problem}\nIts end was tried before the first step, so nothing is "
            "lost. Correct the network or the task and start again.",
            code="rehearsal_failed",
        )


def parameters_in(module: Any) -> int:
    """The number of a network's parameters. ZeRO 3 may hold them in shares."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())


def _whole(engine: Any, job: Job, batches: Batches, rank: Rank, position: Position) -> str:
    """The problem of writing, exporting and loading the engine's state, on rank 0. Empty: there is none."""
    batch = batches.any_row()
    engine.eval()
    ours = [answers(job, engine, batch) for _ in range(2)]
    engine.train()
    uri = storage.join(job.home, from_first_rank(PREFIX + uuid.uuid4().hex[:8]))
    if rank.rank == 0:
        for name in storage.list_directory(job.home):
            if name.startswith(PREFIX):  # an attempt that died
                storage.delete(storage.join(job.home, name))
    barrier()
    snapshot.take(engine, rank.rank, position).write(uri, job.spec.checkpoint.retry_seconds)
    barrier()
    if rank.rank:
        return ""
    try:
        loaded, again = _exported(uri, job, rank)
        # In fp32, so that values drawn when a network is built show even if they are small.
        served = [answers(job, loaded, batch) for _ in range(2)]
        if problem := _difference(served, answers(job, again, batch)):
            return problem
        del again
        wide = None if _exact(engine) else served[0]
        return _difference(ours, answers(job, _cast(loaded, engine), batch), wide)
    except Exception as error:  # whatever the user's code raises
        return f"{type(error).__name__}: {error}"
    finally:
        storage.delete(uri)


def _exported(uri: str, job: Job, rank: Rank) -> list[Any]:
    """The network as a server would load it, two times."""
    with TemporaryDirectory(prefix="maas-rehearsal-") as scratch:
        directory = Path(scratch) / "bundle"
        directory.mkdir()
        export(loading.fetch(uri, Path(scratch) / "saved"), job.dataset, job.spec.network, directory)
        task = load_task(directory)
        return [task.load_model(directory).to(rank.device).eval() for _ in range(2)]


def _cast(model: Any, engine: Any) -> Any:
    """A network that computes in the precision of the engine."""
    return compute_as(model, engine.config, {name: p.dtype for name, p in engine.module.named_parameters()})


def answers(job: Job, model: Any, batch: dict[str, Any]) -> Outcomes:
    """A network's outcomes of a batch if the run measures any, otherwise its loss."""
    import torch

    task: Task = job.dataset.task
    with torch.no_grad():
        if any(job.dataset.split(name).rows for name in ("validation", "test")):
            return task.outcomes(model, batch)
        return {"loss": task.loss(model, batch).double().cpu().numpy()}


def _exact(engine: Any) -> bool:
    """True if the engine computes in fp32."""
    import torch

    wide = all(p.dtype == torch.float32 for p in engine.module.parameters() if p.is_floating_point())
    return wide and not autocasts(engine.config)


def _difference(ours: list[Outcomes], loaded: Outcomes, wide: Outcomes | None = None) -> str:
    """The first output of the loaded network that is not the engine's. Empty: all are.

    Both compute the same in the same precision, so only rounding may tell them apart. It is compared with the largest
    output, because a small output may be the difference of large values. In a deep network, rounding to 16 bits adds
    up to any size, so `wide` measures it.

    Args:
        ours: the engine's outputs, computed twice.
        loaded: the loaded network's.
        wide: the loaded network's in fp32. None: the others are in fp32.
    """
    for name, values in ours[0].items():
        theirs = loaded[name]
        if values.dtype.kind != "f":
            continue  # text
        allowed = (_TOLERANCE if wide is None else _TOLERANCE_16) * (1 + _largest(values))
        if wide is not None and wide[name].shape == theirs.shape:
            allowed += _ROUNDINGS * _largest(theirs - wide[name])
        same: dict[str, Any] = {"rtol": 0.0, "atol": allowed, "equal_nan": True}
        if not np.allclose(values, ours[1][name], **same):
            continue  # random also in training
        if values.shape != theirs.shape or not np.allclose(values, theirs, **same):
            return (
                f"the loaded network answers otherwise: `{name}` of a row is {_shown(theirs)} and not "
                f"{_shown(values)}. Does the network hold values outside its parameters and buffers, or draw them when "
                "it is built?"
            )
    return ""


def _largest(values: np.ndarray) -> float:
    """The largest absolute value among those that are finite."""
    return float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0))


def _shown(values: np.ndarray) -> str:
    return ", ".join(f"{value:.6g}" for value in values.flatten()[:4]) + (", …" if values.size > 4 else "")


def _names(engine: Any, job: Job, rank: Rank) -> str:
    """The problem of names and shapes, and of the configuration, on rank 0. Empty: there is none."""
    if rank.rank:
        return ""
    module, network, task = engine.module, job.spec.network, job.dataset.task
    parameters = dict(module.named_parameters(remove_duplicate=False))
    held = {
        name: SimpleNamespace(shape=getattr(parameters.get(name, value), "ds_shape", value.shape))
        for name, value in module.state_dict(keep_vars=True).items()
    }
    try:
        skeleton = network.skeleton(task)
        with TemporaryDirectory(prefix="maas-rehearsal-") as scratch:
            task.save(Path(scratch))
            network.write_config(skeleton, task, Path(scratch))
            load_task(Path(scratch))
        tied = tied_names(skeleton)
        wanted = {name: tensor for name, tensor in skeleton.state_dict().items() if name not in tied}
        check_names("the network", held, wanted, tied)
    except Exception as error:  # whatever the user's code raises
        return f"{type(error).__name__}: {error}"
    return ""
