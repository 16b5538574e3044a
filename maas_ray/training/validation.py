"""Validation beside the training: a checkpoint is measured in a process of its own while the next steps are made.

    workers ── checkpoint k is whole ──▶ Ray Train's controller ──▶ Validator: load k, measure ──▶ validation.json in k
       └────── at the validation after it: wait for k ─────────────────▲

One at a time: the training waits where the one before is not there yet, so what early stopping sees never
depends on how fast either was. Whoever asks first for a checkpoint has it measured; to ask again costs nothing.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from maas_ray import storage
from maas_ray.data.dataset import PreparedDataset
from maas_ray.tasks import NetworkSpec
from maas_ray.tasks.task import outcomes_of
from maas_ray.training import checkpoint
from maas_ray.training.checkpoint import Position
from maas_ray.training.events import Event, in_words
from maas_ray.training.export import consolidated
from maas_ray.training.spec import TrainSpec


class Validator:
    """The body of an actor that measures checkpoints of a run.

    Args:
        spec: the run's.
        dataset: what it is measured on.
        home: URI of the run's directory.
        batch_size: rows in one forward pass.
        gpu: whether to compute on a GPU.
    """

    def __init__(self, spec: TrainSpec, dataset: PreparedDataset, home: str, batch_size: int, gpu: bool) -> None:
        import torch

        self._spec, self._dataset, self._home = spec, dataset, home
        self._batch_size, self._device = batch_size, torch.device("cuda" if gpu else "cpu")
        if not gpu:
            torch.set_num_threads(max(1, int(spec.cpus_per_worker)))

    def measure(self, name: str, events: Any) -> dict[str, float]:
        """Metrics of a checkpoint on the validation split; they are put into its directory.

        Args:
            name: the checkpoint's.
            events: handle of the `EventBuffer` actor; told of what is new.

        Raises:
            MaasError: the checkpoint cannot be read.
        """
        import ray

        uri = storage.join(self._home, name)
        if measured := checkpoint.validation(uri):
            return measured
        position, _ = checkpoint.inspect(uri)
        model = self._load(uri, position)
        groups = self._dataset.row_groups("validation")
        batches = self._dataset.batches(groups, self._batch_size, high=self._spec.validation.max_rows)
        task = self._dataset.task
        values = task.metrics(outcomes_of(task, model, batches, self._device))
        metrics = {f"validation/{metric}": value for metric, value in values.items()}
        told = Event(step=position.step, metrics=metrics, text=f"step {position.step:,}: {in_words(metrics)}")
        ray.get(events.push.remote(told))  # before it counts as measured: killed between, it is told again, not never
        checkpoint.put_validation(uri, metrics)
        return metrics

    def _load(self, uri: str, position: Position) -> Any:
        """The network with a checkpoint's weights, in the precision of the training, as its workers would measure."""
        import torch

        network: NetworkSpec = self._spec.network
        model = network.build(self._dataset.task)
        tied = set(getattr(model, "all_tied_weights_keys", ()))  # these share another's values
        with TemporaryDirectory(prefix="maas-validate-") as scratch, torch.no_grad():
            state = consolidated(checkpoint.fetch(uri, Path(scratch) / "saved"))
            for key, value in model.state_dict().items():
                if key not in tied:
                    value.copy_(state[key].contiguous())
            del state  # it keeps the files mapped
        for field, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            if position.deepspeed.get(field, {}).get("enabled"):
                model = model.to(dtype)
        return model.to(self._device).eval()
