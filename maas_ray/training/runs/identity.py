"""The identity of a run: a digest of everything that decides what it computes.

The run's name, how it is watched and the machines it runs on are not part of it. `checkpoint.select` chooses among the
checkpoints of a run, so it is not part of it either; a finished run answers a changed `select` from what it kept.
"""

from typing import Any

from maas_ray.spec import digest_of
from maas_ray.tasks import NetworkSpec, Task
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.training.deepspeed.batch import batch_geometry
from maas_ray.training.spec import TrainSpec

_NOT_COMPUTED: dict[str, Any] = {
    **dict.fromkeys(("run", "alias", "gate", "dataset", "log_every_steps", "max_failures", "checkpoint"), True),
    **dict.fromkeys(("workers", "cpus_per_worker", "device", "micro_batch_size", "network"), True),
    "validation": {"place"},
}


def identity_of(spec: TrainSpec, fingerprint: str, *, couples_rows: bool = False, spares: bool = True) -> str:
    """The identity of the run that a spec and a dataset name.

    Args:
        spec: the run's.
        fingerprint: the dataset's.
        couples_rows: see the function of this name.
        spares: False for runs of version 0.2, whose weight decay spares no parameter.
    """
    geometry = batch_geometry(spec, spec.max_workers)
    document: dict[str, Any] = {
        "spec": spec.model_dump(mode="json", exclude=_NOT_COMPUTED) | {"network": spec.network.identity()},
        "batch_size": geometry.batch,
        "dataset": fingerprint,
    }
    if spec.network.own_source is not None:
        document["source"] = spec.network.own_source.digest
    # The interval of validations is that of checkpoints unless `validation`, which is in the spec above, has its own.
    if spec.validation_decides and spec.validation.every_steps is None:
        document["validate_every"] = spec.validate_every
    if spec.validation.max_rows_at_end is None:  # it came after version 0.2
        del document["spec"]["validation"]["max_rows_at_end"]
    if spares:
        document["spares"] = True
    if couples_rows:
        document["micro_batch"] = geometry.micro_batch
    return digest_of(document)


def couples_rows(network: NetworkSpec, task: Task) -> bool:
    """True if a row's loss depends on the other rows of its forward pass: by the task, or by batch normalisation."""
    if task.couples_rows:
        return True
    if isinstance(network, Pretrained):
        return any(name.endswith("running_mean") for name in network.weight_names())
    # The platform's own networks do not normalise over a batch.
    own = network.own_source is not None
    return own and any("BatchNorm" in type(module).__name__ for module in network.skeleton(task).modules())
