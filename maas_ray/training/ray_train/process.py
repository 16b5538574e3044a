"""The driver's process while workers train: its environment variables, its signals and its watcher."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from maas_ray.terminal.lines import progress
from maas_ray.training.events import Watcher
from maas_ray.training.runs.metrics import MetricLog
from maas_ray.training.runs.record import TrainingRun

_LAST_METRICS_SECONDS = 90.0


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set the variables that are not set yet while the block runs."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt. Ray Train alone would take the signal, end the workers and exit with 0.

    In a terminal and in a job, SIGTERM arrives here as Ctrl-C.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def watched(run: TrainingRun, events: Any, total_steps: int) -> Iterator[None]:
    """Show and log events while the block runs; the last ones when it ends."""
    import ray

    stop = threading.Event()
    with progress("training", total_steps) as shown:
        watcher, metrics = Watcher(shown, run.dataset.task.unit), MetricLog(run.registry.client, run.run_id, shown.line)

        def handle() -> None:
            drained = ray.get(events.drain.remote())
            metrics.put(drained)
            watcher.show(drained)

        def watch() -> None:
            while not stop.wait(1.0):
                with suppress(ray.exceptions.RayError):  # the training itself fails if the cluster is lost
                    handle()

        thread = threading.Thread(target=watch, name="maas-train-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with suppress(ray.exceptions.RayError):
                handle()
            metrics.close(_LAST_METRICS_SECONDS)
