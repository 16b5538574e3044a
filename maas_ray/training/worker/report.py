"""Reports of a worker: loss and speed since the last report, and lines of text, pushed to the `EventBuffer`."""

import math
import time
from collections.abc import Callable
from typing import Any

from maas_ray.errors import NonFiniteLossError
from maas_ray.tasks import Task
from maas_ray.training import events
from maas_ray.training.deepspeed.defaults import precision
from maas_ray.training.deepspeed.engine import gradient_norm
from maas_ray.training.events import Event
from maas_ray.training.hyperparameters import Hyperparameters
from maas_ray.training.plan import Plan
from maas_ray.training.worker.job import Rank
from maas_ray.training.worker.mfu import flops_per_token, peak_flops


class Reporter:
    """Pushes events to the `EventBuffer` actor without waiting for it."""

    def __init__(self, buffer: Any, rank: int, total_steps: int) -> None:
        self._buffer, self._rank, self._total_steps = buffer, rank, total_steps

    def push(self, step: int, metrics: dict[str, float], text: str = "") -> None:
        """Push metrics and a line of text; only rank 0 does."""
        if self._rank == 0:
            self._buffer.push.remote(Event(step=step, metrics=metrics, text=text, total_steps=self._total_steps))

    def push_own(self, step: int, text: str) -> None:
        """Push a line of text that may be true of this worker alone."""
        self._buffer.push.remote(Event(step=step, text=f"worker {self._rank}: {text}"))


class Window:
    """Losses, times and the last learning rate since the last report. Losses stay on the device until then."""

    def __init__(self) -> None:
        self.losses: list[Any] = []
        self.steps = 0
        self.data_seconds = 0.0
        self.learning_rate = 0.0
        self.started = time.perf_counter()


class Progress:
    """Reports loss and speed, and keeps the clock that all ranks share.

    Args:
        engine: DeepSpeed's.
        task: the fitted task.
        plan: the run's.
        spec: its number format decides whether there is an MFU.
        rank: this worker.
        reporter: takes the reports.
        seconds: how long the run has trained before.
        advice: gives likely causes of a loss that is not finite.
    """

    def __init__(
        self,
        engine: Any,
        task: Task,
        plan: Plan,
        spec: Hyperparameters,
        rank: Rank,
        *,
        reporter: Reporter,
        seconds: float,
        advice: Callable[[], str],
    ) -> None:
        self._engine, self._rank, self._reporter, self._advice = engine, rank, reporter, advice
        self._units_per_step = plan.batch_size * task.units_per_row
        self._began, self.seconds = time.perf_counter() - seconds, seconds
        self._peak, self._flops_per_unit = _flops(engine, task, spec, rank)
        self.window = Window()

    def report(self, step: int) -> None:
        """Report the steps since the last report, and stop the run if a loss was not finite.

        Raises:
            NonFiniteLossError: on every rank alike.
        """
        import torch

        window, self.window = self.window, Window()
        if not window.steps:
            return
        losses = torch.stack(window.losses).float().view(window.steps, -1).mean(dim=1)
        # The clock is averaged with the losses, so that all ranks use the same time.
        clock = torch.tensor([time.perf_counter() - self._began], device=losses.device)
        shared = torch.cat([losses, clock])
        torch.distributed.all_reduce(shared)
        shared = (shared / self._rank.world).cpu()
        losses, self.seconds = shared[:-1], float(shared[-1])
        for offset, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                raise NonFiniteLossError(step - window.steps + 1 + offset, loss, self._advice())
        seconds = (time.perf_counter() - window.started) / window.steps
        speed = self._units_per_step / seconds
        norm = gradient_norm(self._engine)
        self._reporter.push(
            step,
            {
                events.LOSS: float(losses.mean()),
                events.LEARNING_RATE: window.learning_rate,
                events.UNITS_PER_SECOND: speed,
                events.STEP_SECONDS: seconds,
                events.DATA_WAIT_SHARE: window.data_seconds / (seconds * window.steps),
                **({events.GRADIENT_NORM: norm} if norm is not None else {}),
                **({events.MFU: self._flops_per_unit * speed / self._peak} if self._peak else {}),
            },
        )

    def restart_window(self) -> None:
        """Exclude the time since the last step from the speed: it was spent on validation or a checkpoint."""
        self.window.started = time.perf_counter()


def _flops(engine: Any, task: Task, spec: Hyperparameters, rank: Rank) -> tuple[float, float]:
    """Peak FLOP/s of all workers, and FLOPs of a token. Both are 0 unless tokens are trained on a GPU in 16 bits."""
    if rank.device.type != "cuda" or task.unit != "tokens" or precision(spec) == "fp32":
        return 0.0, 0.0
    import torch

    peak = rank.world * (peak_flops(torch.cuda.get_device_name(rank.device)) or 0.0)
    # Under ZeRO 3 a parameter is a shard, whose `ds_numel` is the size of the whole one.
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    return peak, flops_per_token(parameters, getattr(engine.module, "config", None), task.units_per_row)
