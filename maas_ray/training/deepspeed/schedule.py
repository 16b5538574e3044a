"""The learning rate of each step: DeepSpeed's schedule, begun where its rate is above 0.

DeepSpeed's warm-ups give the first two steps the rate 0: one before the schedule begins, one at its iteration 0. Their
rows would count as trained and move nothing. So a new run skips the iterations whose rate is 0, and step k, counted
from 1, has the rate of iteration k.
"""

from typing import Any

MAX_LEAD = 2
"""Most iterations that a run skips."""


def begin_schedule(engine: Any) -> int:
    """Skip the iterations of a new engine's schedule whose rate is 0.

    Returns:
        How many were skipped; the run's checkpoints keep it for `continue_schedule`.
    """
    scheduler, lead = engine.lr_scheduler, 0
    if scheduler is None or any(engine.get_lr()):
        return 0
    _align(engine)
    while lead < MAX_LEAD and not any(engine.get_lr()):
        scheduler.step()
        lead += 1
    return lead


def continue_schedule(engine: Any, lead: int) -> None:
    """Continue the schedule of a run that began with `lead`. 0: as DeepSpeed has it, such as runs of 0.2.0."""
    if lead:
        _align(engine)


def _align(engine: Any) -> None:
    """Let a warm-up end, and the decay after it, at the steps that the configuration names."""
    scheduler = engine.lr_scheduler
    if hasattr(scheduler, "warmup_num_steps"):
        # DeepSpeed raises a warm-up of one step to two.
        scheduler.warmup_num_steps = engine.scheduler_params().get("warmup_num_steps", scheduler.warmup_num_steps)
    if hasattr(scheduler, "total_num_steps"):
        scheduler.total_num_steps += 1  # otherwise a linear decay reaches 0 at the last step, not after it
