"""Metrics of a run survive an MLflow that does not answer for a while."""

import threading

import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from maas_ray.errors import StorageError
from maas_ray.training.events import Event
from maas_ray.training.runs import metrics
from maas_ray.training.runs.metrics import MetricLog


class Client:
    """Takes metrics, but fails the first `failures` calls."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures, self.taken = failures, []
        self.answered = threading.Event()

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.taken += [(metric.step, metric.value) for metric in metrics]
        self.answered.set()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.time, "sleep", lambda seconds: None)


def events(*steps: int) -> list[Event]:
    return [Event(step, {"train/loss": float(step)}) for step in steps]


def test_an_outage_loses_nothing_and_is_told_once() -> None:
    said: list[str] = []
    client = Client([StorageError("away", code="mlflow_unavailable") for _ in range(3)])
    log = MetricLog(client, "run", said.append)
    log.put(events(1, 2))
    log.put(events(3))
    assert client.answered.wait(10)
    log.put(events(4))
    log.close(10)
    assert client.taken == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert len(said) == 2, said


def test_metrics_that_are_refused_are_dropped_and_the_next_are_recorded() -> None:
    said: list[str] = []
    client = Client([MlflowException("the run is deleted", error_code=1000)])
    log = MetricLog(client, "run", said.append)
    log.put(events(1))
    while not said:
        threading.Event().wait(0.01)
    log.put(events(2))
    log.close(10)
    assert client.taken == [(2, 2.0)]


def test_closing_waits_no_longer_than_it_was_told() -> None:
    said: list[str] = []
    log = MetricLog(Client([StorageError("away") for _ in range(10**6)]), "run", said.append)
    log.put(events(1, 2))
    log.close(0.0)
    assert "2 metrics" in said[-1]
