"""Validation beside the training: a checkpoint is measured in a process of its own while the next steps are made.

    worker ── report(checkpoint k, validation) ──▶ Ray Train's controller ──▶ Validator ──▶ a task: load k, measure
       │                                                                                          │
       └── at the validation after it: wait for ◀── validation.json in checkpoint k ◀─────────────┘

One at a time: the training waits where the one before is not there yet, so what early stopping sees never
depends on how fast either was.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from maas_ray import storage
from maas_ray.data.dataset import PreparedDataset
from maas_ray.tasks import NetworkSpec
from maas_ray.tasks.base import summed
from maas_ray.train import checkpoint
from maas_ray.train.events import Event
from maas_ray.train.export import consolidated
from maas_ray.train.spec import TrainSpec


@dataclass(frozen=True)
class Validator:
    """Measures checkpoints of a run. Ray Train calls it, in a task without resources, for each that asks for it."""

    spec: TrainSpec
    dataset: PreparedDataset
    home: str
    """URI of the run's directory."""
    events: Any
    """Handle of the `EventBuffer` actor."""
    batch_size: int
    """Rows in one forward pass."""
    resources: dict[str, Any]
    """Options of the Ray task that measures."""

    def __call__(self, _: Any, *, name: str) -> dict[str, float]:
        """Measure the checkpoint of that name. Empty: it could not be measured, and the run was told why."""
        import ray

        # A task of its own: what kills it, such as too little memory, would end Ray Train's controller.
        try:
            return dict(ray.get(ray.remote(**self.resources)(_measure).remote(self, name)))
        except ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[-1]
            text = f"checkpoint {name} could not be validated: {cause}"
            self.events.push.remote(Event(step=checkpoint.step_of(name), text=text))
            return {}


def _measure(validator: Validator, name: str) -> dict[str, float]:
    import torch

    spec, task, uri = validator.spec, validator.dataset.task, storage.join(validator.home, name)
    device = torch.device("cuda" if validator.resources.get("num_gpus") else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(spec.cpus_per_worker)))
    position, _ = checkpoint.inspect(uri)
    network: NetworkSpec = spec.network
    model = network.build(task)
    tied = set(getattr(model, "all_tied_weights_keys", ()))  # these share another's values
    with TemporaryDirectory(prefix="maas-validate-") as scratch:
        state = consolidated(checkpoint.fetch(uri, Path(scratch) / "saved"))
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if key not in tied:
                    value.copy_(state[key].contiguous())
        del state
    # In the precision of the training, as its own workers would measure.
    for field, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if position.deepspeed.get(field, {}).get("enabled"):
            model = model.to(dtype)
    model = model.to(device).eval()
    batches = validator.dataset.batches("validation", validator.batch_size, high=spec.validation.max_rows)
    measured = task.summarise(summed(task, model, batches, device))
    metrics = {f"validation/{metric}": value for metric, value in measured.items()}
    checkpoint.put_validation(uri, metrics)
    shown = "  ".join(f"{metric.replace('/', ' ')} {value:.4g}" for metric, value in metrics.items())
    validator.events.push.remote(Event(step=position.step, metrics=metrics, text=f"step {position.step}: {shown}"))
    return metrics
