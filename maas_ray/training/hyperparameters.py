"""The part of a training spec that decides how workers compute: workers, batch, optimizer, schedule, precision."""

from typing import Annotated, Any, Literal

from pydantic import Field

from maas_ray.spec import Spec
from maas_ray.tasks import NetworkSpec
from maas_ray.training.deepspeed.document import DeepSpeedDocument

Workers = Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
"""A number of workers, or the smallest and the largest number."""


def _default_learning_rate(fields: dict[str, Any]) -> float:
    """The default for the network, if the fields that were parsed before have one."""
    network: NetworkSpec | type[NetworkSpec] = fields.get("network", NetworkSpec)
    return network.learning_rate


class WorkerSpec(Spec):
    """The training workers."""

    workers: Workers = 1
    """Training workers; with GPUs, one GPU each. `[2, 8]`: as many as the cluster has room for, from 2 to 8."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """Logical CPUs that Ray reserves for each worker; also its number of compute threads, at least one."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device to train on. auto: on GPUs if the cluster has enough of them."""
    max_failures: int = Field(2, ge=0)
    """How often a run is restarted from its last checkpoint after a worker died."""

    @property
    def min_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def threads(self) -> int:
        """Compute threads of each worker."""
        return max(1, int(self.cpus_per_worker))


class Hyperparameters(WorkerSpec):
    """The fields that DeepSpeed's configuration is made of."""

    deepspeed: DeepSpeedDocument = Field(default_factory=lambda: {"zero_optimization": {"stage": 1}})
    """DeepSpeed configuration: a path to a JSON file, or inline. `"auto"` values are filled from this spec."""
    batch_size: int = Field(32, ge=1)
    """Rows in one optimizer step, over all workers."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows in one forward pass of one worker. None: the largest that fits `batch_size`, up to 8192 tokens of text; up
    to 8 rows of other data, and if a row's loss depends on other rows of its pass."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Number format of the forward and backward pass; master weights are fp32."""
    learning_rate: float = Field(default_factory=_default_learning_rate, gt=0)
    """Peak learning rate. Default: 0.00002 for a `pretrained` network, 0.001 for others."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay (AdamW). Biases, weights of normalisation layers and embeddings do not decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decay rates."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's denominator term."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps of linear warm-up. None: 3 % of all steps."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest global gradient norm. 0: gradients are not clipped."""
    seed: int = Field(0, ge=0)
    """Seeds the initial weights, the order of rows, and dropout."""


def count_of_workers(workers: int) -> str:
    """A number of workers in words: `1 worker`, `2 workers`."""
    return "1 worker" if workers == 1 else f"{workers} workers"
