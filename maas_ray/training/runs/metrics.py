"""Metrics of a run on their way to MLflow: recorded by a thread of its own, and kept while MLflow does not answer."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from maas_ray.errors import StorageError
from maas_ray.training.events import Event

_BATCH = 1000  # MLflow's limit for one call
_MAX_PAUSE = 15.0


class MetricLog:
    """Records the metrics of events in a run.

    Args:
        client: MLflow's.
        run_id: MLflow's id of the run.
        say: called with a line when MLflow stops to answer, answers again, or refuses metrics.
    """

    def __init__(self, client: Any, run_id: str, say: Callable[[str], None]) -> None:
        self._client, self._run_id, self._say = client, run_id, say
        self._pending: list[Any] = []
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._away = False
        self._thread = threading.Thread(target=self._run, name="maas-metrics", daemon=True)
        self._thread.start()

    def put(self, events: Iterable[Event]) -> None:
        """Record metrics soon; returns at once."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(event.time * 1000), event.step)
            for event in events
            for name, value in event.metrics.items()
        ]
        if metrics:
            with self._changed:
                self._pending += metrics
                self._changed.notify()

    def close(self, seconds: float) -> None:
        """Record what is left, for at most so many seconds; says how many metrics could not be recorded."""
        with self._changed:
            self._deadline = time.monotonic() + seconds
            self._changed.notify()
        self._thread.join(seconds + 1.0)  # a call of MLflow's client may itself retry for minutes
        if self._pending:
            self._say(f"{len(self._pending)} metrics of this run could not be recorded in MLflow")

    def _run(self) -> None:
        pause = 1.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._deadline is not None)
                batch = self._pending[:_BATCH]
            if not batch:
                return
            if self._sent(batch):
                with self._changed:
                    del self._pending[: len(batch)]
                pause = 1.0
                continue
            if self._deadline is not None and time.monotonic() + pause >= self._deadline:
                return
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)

    def _sent(self, batch: list[Any]) -> bool:
        """True if a batch is done with: recorded, or refused for good. Recording it twice has no effect."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(self._run_id, metrics=batch)
        except StorageError as error:
            if not self._away:
                self._away = True
                self._say(f"{error}; training goes on, and its metrics are recorded when MLflow answers again")
            return False
        except MlflowException as error:
            self._say(f"MLflow refuses {len(batch)} metrics of this run: {error.message}")
        if self._away:
            self._away = False
            self._say("MLflow answers again")
        return True
