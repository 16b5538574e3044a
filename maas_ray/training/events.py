"""Events of a run, on their way from the workers to the driver's terminal and to MLflow.

Workers push events without waiting, and the driver drains them. So workers need no access to MLflow, whose database may
be on one machine.
"""

import time
from dataclasses import dataclass, field

from maas_ray.terminal.lines import Progress

# Names of the training's metrics in MLflow. Seconds of checkpoints and validations are those in which training waits.
LOSS = "train/loss"
LEARNING_RATE = "train/learning_rate"
GRADIENT_NORM = "train/gradient_norm"
UNITS_PER_SECOND = "train/units_per_second"
STEP_SECONDS = "train/step_seconds"
DATA_WAIT_SHARE = "train/data_wait_share"
MFU = "train/mfu"
LOSS_SCALE = "train/loss_scale"
LEFT_OUT_STEPS = "train/left_out_steps"
CHECKPOINT_SECONDS = "train/checkpoint_stall_seconds"
CHECKPOINT_WRITE_SECONDS = "train/checkpoint_write_seconds"  # beside the training
VALIDATION_SECONDS = "train/validation_seconds"


def in_words(metrics: dict[str, float]) -> str:
    """Metrics by `split/metric`, as one line of text."""
    return "  ".join(f"{name.replace('/', ' ')} {value:.4g}" for name, value in metrics.items())


@dataclass(frozen=True)
class Event:
    """One event. `metrics` go to MLflow, `text` is a line for the terminal."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    text: str = ""
    total_steps: int = 0
    time: float = field(default_factory=time.time)


class EventBuffer:
    """The body of a small Ray actor that holds events until they are drained, and a request to the workers to leave."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._leaving = False

    def push(self, event: Event) -> None:
        self._events.append(event)

    def drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def set_leaving(self, leaving: bool) -> None:
        """Ask the workers to save and leave, or withdraw the request; rank 0 withdraws it when they have saved."""
        self._leaving = leaving

    def leaving(self) -> bool:
        return self._leaving


class Watcher:
    """Shows events in the terminal."""

    def __init__(self, shown: Progress, unit: str) -> None:
        self._shown, self._unit = shown, unit

    def show(self, events: list[Event]) -> None:
        """Show lines of text, and the progress."""
        for event in events:
            if event.text:
                self._shown.line(event.text)
            if LOSS in event.metrics:
                self._shown.update(event.step, self._note(event), total=event.total_steps)

    def _note(self, event: Event) -> str:
        speed = event.metrics[UNITS_PER_SECOND]
        left = (event.total_steps - event.step) * event.metrics[STEP_SECONDS]
        mfu = f"  MFU {event.metrics[MFU]:.0%}" if MFU in event.metrics else ""
        return f"loss {event.metrics[LOSS]:.3f}  {speed:,.0f} {self._unit}/s{mfu}  {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
