"""What a user writes to train: the spec, checked whole at parse."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from maas_ray.registry.gates import GateText, parse_gate
from maas_ray.registry.versions import Alias
from maas_ray.spec import Name, Spec
from maas_ray.tasks import AnyNetworkSpec
from maas_ray.training.deepspeed_config import check_against_spec, read_document, resolve

DeepSpeedDocument = Annotated[dict[str, Any], BeforeValidator(read_document)]
"""A DeepSpeed configuration, inline or the path of a JSON file: DeepSpeed's own document, passed through whole."""
Workers = Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
"""A number of workers, or the least and the most of them."""


class CheckpointSpec(Spec):
    """When the state of a run is saved. At most one checkpoint is on its way to storage at a time."""

    every_steps: int = Field(200, ge=1)
    """Optimizer steps between checkpoints; the last step always has one. Each waits until the one before is in
    storage, so never more than twice as many steps are unsaved, whatever storage does."""
    keep: int = Field(2, ge=1)
    """How many of the newest whole checkpoints to keep; the one of the lowest validation loss stays too."""
    retry_seconds: float = Field(300.0, ge=0)
    """How long a write that fails is tried again, seconds. Then the workers are restarted, up to `max_failures` times,
    or, where it is the bundle's, the run ends; it can be started again."""
    select: Literal["last", "best"] = "last"
    """Which checkpoint becomes the version. best: the one of the lowest validation loss."""


class ValidationSpec(Spec):
    """When and where the model is measured while it trains."""

    every_steps: int | None = Field(None, ge=1)
    """Optimizer steps between validations. None: with every checkpoint."""
    max_rows: int | None = Field(4096, ge=1)
    """Rows of the validation split to measure on; the last step uses all. None: all, always."""
    place: Literal["auto", "beside", "workers"] = "auto"
    """beside: on the saved checkpoint, in a process of its own while training goes on. workers: in the workers, which
    stop training meanwhile. auto: beside, where the cluster has room for one worker more and each validation has a
    checkpoint, but not under ZeRO 3, whose model may be too large for one process."""


class EarlyStoppingSpec(Spec):
    """When a run ends because it gets no better."""

    patience: int = Field(ge=1)
    """Validations in a row without a lower validation loss after which the run ends."""
    min_delta: float = Field(0.0, ge=0)
    """How much lower the loss must be to count."""


class TrainSpec(Spec):
    """`maas train SPEC.yaml`: train a network on a prepared dataset and register the result."""

    dataset: str
    """Prepared dataset: a name, `name/fingerprint`, or a URI."""
    model: Name
    """Name to register the result under."""
    network: AnyNetworkSpec
    """The network; its `type` must be one that the dataset's task knows."""
    deepspeed: DeepSpeedDocument = Field(default_factory=lambda: {"zero_optimization": {"stage": 1}})
    """DeepSpeed configuration: a path to a JSON file, or inline. `"auto"` values are filled from this spec."""
    run: Name | None = None
    """Name of the run; the same name goes on where it stopped. None: made from the spec and the dataset."""
    alias: Alias | None = None
    """Alias to give the new version, such as `champion`. None: none."""
    gate: Annotated[tuple[GateText, ...], BeforeValidator(lambda one: (one,) if isinstance(one, str) else one)] = ()
    """What must hold before it gets the alias, such as `validation/f1 >= champion - 0.005`; several in a list."""

    workers: Workers = 1
    """Training workers; with GPUs, one GPU each. `[2, 8]`: as many as the cluster has room for, from 2 to 8."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """Logical CPUs that Ray reserves for each worker; also its number of compute threads, at least one."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train. auto: on GPUs if the cluster has enough of them."""
    max_failures: int = Field(2, ge=0)
    """How often a run is restarted from its last checkpoint after a worker died."""

    epochs: int = Field(1, ge=1)
    """Passes over the training split."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, whatever `epochs` says. None: no limit."""
    max_units: int | None = Field(None, ge=1)
    """Stop after this many units, as throughput counts them: tokens of text, else rows. None: no limit."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop after training this long, all attempts together. None: no limit."""
    early_stopping: EarlyStoppingSpec | None = None
    """Stop when the validation loss gets no lower. None: train to the end."""
    batch_size: int = Field(32, ge=1)
    """Rows in one optimizer step, over all workers."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows in one forward pass of one worker. None: the largest up to 8 that fits `batch_size`."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Number format of the forward and backward pass; master weights are fp32."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay (AdamW)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decay rates."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's denominator term."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps of linear warm-up. None: 3 % of all steps."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest global gradient norm. 0: none."""
    seed: int = Field(0, ge=0)
    """Seeds the initial weights, the order of rows, and dropout."""

    checkpoint: CheckpointSpec = CheckpointSpec()
    """When the state of the run is saved."""
    validation: ValidationSpec = ValidationSpec()
    """When the model is measured."""
    log_every_steps: int = Field(10, ge=1)
    """Optimizer steps between two reports of loss and speed."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainSpec":
        if self.least_workers > self.most_workers:
            raise ValueError(f"workers: [{self.least_workers}, {self.most_workers}]: the least comes first.")
        if self.gate and self.alias is None:
            raise ValueError("gate: is for the alias to move, and there is none; add `alias`.")
        for text in self.gate:
            if "/" not in (metric := parse_gate(text).metric):
                raise ValueError(
                    f"gate: {metric!r} is measured by an evaluation, and a version just trained has none; name what "
                    f"the training measures, such as validation/{metric}."
                )
        if self.validation.place == "beside" and not self.checkpoint_for_each_validation:
            raise ValueError(
                "validation.place: each validation beside the training needs a checkpoint, but validation.every_steps "
                f"is {self.validate_every}, no multiple of checkpoint.every_steps ({self.checkpoint.every_steps}). "
                "Make it one, or write `workers`."
            )
        check_against_spec(self)
        # Names an "auto" that nothing fills.
        resolve(self, workers=self.most_workers, total_steps=1, hidden_size=None, on_cpu=False)
        return self

    @property
    def validate_every(self) -> int:
        """Optimizer steps between validations."""
        return self.validation.every_steps or self.checkpoint.every_steps

    @property
    def checkpoint_for_each_validation(self) -> bool:
        return self.validate_every % self.checkpoint.every_steps == 0

    @property
    def least_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


def counted(workers: int) -> str:
    """Such as `1 worker` or `2 workers`."""
    return "1 worker" if workers == 1 else f"{workers} workers"
