"""Early stopping: a run ends when the validation loss no longer falls."""

import math

from maas_ray.training.checkpoints.position import Position
from maas_ray.training.validation.spec import EarlyStoppingSpec


def judge(position: Position, stopping: EarlyStoppingSpec | None) -> tuple[Position, str]:
    """The position after its newest validation loss is judged, and why the run must end. Empty: it goes on.

    Each loss is judged once, at the validation after it, so that the decision does not depend on where validations
    run: beside the training, the loss of this step is not known yet.
    """
    loss = position.unjudged
    if loss is None or stopping is None:
        return position, ""
    lowest = position.lowest_loss
    better = math.isfinite(loss) and (lowest is None or loss < lowest - stopping.min_delta)
    since = 0 if better else position.validations_since + 1
    position = position.model_copy(
        update={"lowest_loss": loss if better else lowest, "validations_since": since, "unjudged": None}
    )
    return position, f"the validation loss was no lower {since} times" if since >= stopping.patience else ""
