"""The function that Ray Train runs in each worker process."""

from maas_ray.errors import TrainingError
from maas_ray.training.ray_train.failures import AT_START, may_pass
from maas_ray.training.worker.job import Job
from maas_ray.training.worker.loop import Worker

_FINAL = {"non_finite_loss", "rehearsal_failed", "nothing_to_train", "run_differs", "storage_not_shared"}
_FINAL |= {"network_untrainable", "state_not_saved", "zero_3_unsupported"}
"""Codes of errors that no restart mends and that all ranks raise alike."""


def train_worker(config: dict[str, Job]) -> TrainingError | None:
    """Train from the newest whole checkpoint, or from the start, to the end.

    Errors in `_FINAL`, such as a loss that is not finite, would be raised again after a restart. So they are returned,
    not raised: Ray Train restarts workers that raise. Any other error that a restart may not mend says its step, so
    that it is known again.
    """
    worker: Worker | None = None
    try:
        worker = Worker(config["job"])
        worker.run()
    except TrainingError as error:
        if error.code not in _FINAL:
            raise
        return error
    except Exception as error:
        if not may_pass(error):
            error.add_note(f"at step {worker.step:,}" if worker and worker.step else AT_START)
        raise
    return None
