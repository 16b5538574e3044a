"""Validation beside the training: a checkpoint is measured in a process of its own while the next steps are taken.

    workers ── checkpoint k is whole ──▶ Ray Train's controller ──▶ Validator: load k, measure ──▶ validation.json in k
       └────── at the next validation: wait for k ───────────────────▲

One validation runs at a time: the training waits if the previous one is not finished, so early stopping never depends
on the speed of either. Measuring is idempotent: the first request for a checkpoint measures it, later ones read the
result.
"""

from typing import Any

from maas_ray import storage
from maas_ray.data.dataset import PreparedDataset
from maas_ray.tasks import NetworkSpec
from maas_ray.tasks.base import outcomes_of
from maas_ray.training.checkpoints import catalog, loading
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.checkpoints.weights import consolidated, dtypes_in
from maas_ray.training.events import Event, in_words
from maas_ray.training.export import optimizer_order, tied_names
from maas_ray.training.validation.computing import compute_as

_READY_SECONDS = 60.0


def runs(validator: Any) -> bool:
    """True if the actor runs. Otherwise it is ended: two trainings could each hold the room that the other waits for.

    Args:
        validator: handle of a `Validator` actor.
    """
    import ray

    try:
        return bool(ray.get(validator.ready.remote(), timeout=_READY_SECONDS))
    except ray.exceptions.RayError:  # it is dead, or still waits for room
        ray.kill(validator)
        return False


class Validator:
    """The body of an actor that measures checkpoints of a run.

    Args:
        network: the run's network.
        dataset: the dataset that is measured on.
        home: URI of the run's directory.
        batch_size: rows in one forward pass.
        max_rows: rows to measure on. None: all.
        threads: compute threads, if there is no GPU.
        gpu: True to compute on a GPU.
    """

    def __init__(
        self,
        network: NetworkSpec,
        dataset: PreparedDataset,
        home: str,
        *,
        batch_size: int,
        max_rows: int | None,
        threads: int,
        gpu: bool,
    ) -> None:
        import torch

        self._network, self._dataset, self._home = network, dataset, home
        self._batch_size, self._max_rows, self._device = batch_size, max_rows, torch.device("cuda" if gpu else "cpu")
        if not gpu:
            torch.set_num_threads(threads)

    def ready(self) -> bool:
        """True; answers when the process runs."""
        return True

    def measure(self, name: str, events: Any) -> dict[str, float]:
        """Metrics of a checkpoint on the validation split; they are also stored in its directory.

        Args:
            name: the checkpoint's.
            events: handle of the `EventBuffer` actor, which gets new metrics.

        Raises:
            MaasError: the checkpoint cannot be read.
        """
        import ray

        uri = storage.join(self._home, name)
        if measured := catalog.validation(uri):
            return measured
        position, _ = catalog.inspect(uri)
        model = self._load(uri, position)
        groups = self._dataset.row_groups("validation")
        batches = self._dataset.batches(groups, self._batch_size, high=self._max_rows)
        task = self._dataset.task
        values = task.metrics(outcomes_of(task, model, batches, self._device))
        metrics = {f"validation/{metric}": value for metric, value in values.items()}
        event = Event(step=position.step, metrics=metrics, text=f"step {position.step:,}: {in_words(metrics)}")
        # The event comes first: if this process is killed in between, it is pushed twice, not never.
        ray.get(events.push.remote(event))
        catalog.put_validation(uri, metrics)
        return metrics

    def _load(self, uri: str, position: Position) -> Any:
        """The network with a checkpoint's weights, in the precision of the training, as its workers would measure."""
        import torch

        task = self._dataset.task
        model = self._network.build(task)
        tied = tied_names(model)
        with storage.scratch("maas-validate-") as scratch, torch.no_grad():
            saved = loading.fetch(uri, scratch / "saved")
            dtypes, state = dtypes_in(saved), consolidated(saved, optimizer_order(task, model))
            for key, value in model.state_dict().items():
                if key not in tied:
                    value.copy_(state[key].contiguous())
            del state  # it keeps the files mapped
        return compute_as(model.to(self._device), position.deepspeed, dtypes).eval()
