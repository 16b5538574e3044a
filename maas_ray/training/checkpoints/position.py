"""The position of a run: its optimizer steps, the rows it trained on, and what was measured there."""

from typing import Any

from maas_ray.spec import Spec
from maas_ray.training.plan import Ledger


class RowOrder(Spec):
    """The numbers that decide which rows a step trains on."""

    dataset: str
    """Fingerprint of the dataset."""
    batch_size: int
    """Rows in an optimizer step."""
    lanes: int
    """Lanes of the plan."""
    epochs: int
    """Passes over the training split."""
    seed: int
    """Seed of the order."""


class Position(Spec):
    """A run's position."""

    step: int
    """Optimizer steps taken."""
    workers: int
    """Number of workers whose shards make up the checkpoint."""
    rows: int = 0
    """Rows trained on; with `digest`, the ledger."""
    digest: int = 0
    """The ledger's hash of these rows."""
    schedule_lead: int = 0
    """Iterations of the learning rate's schedule that were skipped at the start, because their rate is 0."""
    spares: bool = False
    """True if the optimizer spares some parameters from weight decay. False: saved by version 0.2, in one group."""
    left_out_steps: int = 0
    """Steps that were left out, because their gradients were not finite."""
    left_out_rows: int = 0
    """Rows of these steps; with `left_out_digest`, their ledger."""
    left_out_digest: int = 0
    """The ledger's hash of these rows."""
    metrics: dict[str, float] = {}
    """Metrics measured at this step, by `split/metric`. Empty: none were measured."""
    ended: str = ""
    """Why the run ended here. Empty: it goes on."""
    seconds: float = 0.0
    """How long the run has trained, all attempts together."""
    lowest_loss: float | None = None
    """The lowest validation loss so far. None: not measured yet."""
    validations_since: int = 0
    """Validations since then."""
    comparable_loss: float | None = None
    """The validation loss at this step on the same rows as at all other steps. None: not measured, or not by now."""
    unjudged: float | None = None
    """The newest validation loss, not yet judged by early stopping."""
    validating: str = ""
    """Name of the checkpoint that is being validated beside the training. Empty: none."""
    order: RowOrder | None = None
    """The order of rows. None: saved by version 0.2, which recorded it in MLflow alone."""
    identity: str = ""
    """The run's identity. Empty: saved by version 0.2."""
    deepspeed: dict[str, Any] = {}
    """DeepSpeed's configuration as it ran: DeepSpeed's own document."""

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.rows, self.digest)

    @property
    def left_out(self) -> Ledger:
        return Ledger(self.left_out_rows, self.left_out_digest)
