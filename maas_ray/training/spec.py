"""`TrainSpec`: what a user writes to train, checked whole when it is parsed.

Its parts are specs of their own, for readers that need only one: `WorkerSpec`, `Hyperparameters`, `DurationSpec`,
`CheckpointSpec`, `ValidationSpec`. In YAML the fields of `WorkerSpec`, `Hyperparameters` and `DurationSpec` are flat.
"""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from maas_ray.errors import InvalidError
from maas_ray.registry.gates import GateText, parse_gate
from maas_ray.registry.references import Alias
from maas_ray.spec import Name, Spec
from maas_ray.tasks import AnyNetworkSpec
from maas_ray.training.checkpoints.spec import CheckpointSpec
from maas_ray.training.deepspeed.agreement import check_agreement
from maas_ray.training.deepspeed.resolve import resolve
from maas_ray.training.hyperparameters import Hyperparameters, WorkerSpec
from maas_ray.training.validation.spec import EarlyStoppingSpec, ValidationSpec


def _listed(gate: object) -> object:
    return (gate,) if isinstance(gate, str) else gate


class SubjectSpec(Spec):
    """The subject of a training: its dataset, its network, and the name of the result."""

    dataset: str
    """Prepared dataset: a name, `name/fingerprint`, or a URI."""
    model: Name
    """Name to register the result under."""
    network: AnyNetworkSpec
    """The network; its `type` must be one that the dataset's task supports."""
    run: Name | None = None
    """Name of the run; a run of the same name resumes where it stopped. None: made from the spec and the dataset."""
    alias: Alias | None = None
    """Alias to give the new version, such as `champion`. None: no alias."""
    gate: Annotated[tuple[GateText, ...], BeforeValidator(_listed, json_schema_input_type=str | tuple[str, ...])] = ()
    """Condition for the alias to move, such as `validation/f1 >= champion - 0.005`; several conditions in a list."""


class DurationSpec(Spec):
    """How long a run trains."""

    epochs: int = Field(1, ge=1)
    """Passes over the training split."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, whatever `epochs` says. None: no limit."""
    max_units: int | None = Field(None, ge=1)
    """Stop after this many units, as throughput counts them: tokens of text, otherwise rows. None: no limit."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop after training this long, all attempts together. None: no limit."""
    early_stopping: EarlyStoppingSpec | None = None
    """Stop when the validation loss no longer falls. None: train to the end."""


class TrainSpec(Hyperparameters, DurationSpec, WorkerSpec, SubjectSpec):
    """`maas train SPEC.yaml`: train a network on a prepared dataset and register the result."""

    checkpoint: CheckpointSpec = CheckpointSpec()
    """When the state of the run is saved."""
    validation: ValidationSpec = ValidationSpec()
    """When the model is measured."""
    log_every_steps: int = Field(10, ge=1)
    """Optimizer steps between two reports of loss and speed."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_workers > self.max_workers:
            raise InvalidError(
                "range_reversed", f"workers: [{self.min_workers}, {self.max_workers}]: the smaller number comes first."
            )
        self._check_gate()
        if self.validation.place == "beside" and not self.checkpoint_for_each_validation:
            raise InvalidError(
                "validation_without_checkpoint",
                "validation.place: each validation beside the training needs a checkpoint, but validation.every_steps "
                f"is {self.validate_every}, which is not a multiple of checkpoint.every_steps "
                f"({self.checkpoint.every_steps}). Make it a multiple, or write `workers`.",
            )
        check_agreement(self)
        # This finds an "auto" that no field fills.
        resolve(self, workers=self.max_workers, total_steps=1, hidden_size=None, on_cpu=False)
        return self

    def _check_gate(self) -> None:
        if self.gate and self.alias is None:
            raise InvalidError(
                "gate_without_alias",
                "gate: requires `alias`, because the gate decides whether the alias moves. Add `alias`.",
            )
        for text in self.gate:
            if "/" not in (metric := parse_gate(text).metric):
                raise InvalidError(
                    "gate_needs_split",
                    f"gate: {metric!r} is measured by an evaluation, and a new version does not have one yet. Name a "
                    f"metric that the training measures, such as validation/{metric}.",
                )

    @property
    def validation_decides(self) -> bool:
        """True if the steps at which the model is validated decide about the result."""
        return self.early_stopping is not None or self.checkpoint.select == "best"

    @property
    def validate_every(self) -> int:
        """Optimizer steps between validations."""
        return self.validation.every_steps or self.checkpoint.every_steps

    def saves_at(self, step: int) -> bool:
        """True if a checkpoint is due after a step. To choose the best one, each validation needs one."""
        chosen = self.checkpoint.select == "best" and step % self.validate_every == 0
        return chosen or step % self.checkpoint.every_steps == 0

    @property
    def checkpoint_for_each_validation(self) -> bool:
        return self.validate_every % self.checkpoint.every_steps == 0
