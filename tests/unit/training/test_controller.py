"""Restarts of workers, in words."""

from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.callbacks import BackendSetupCallback, DatasetsCallback
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from maas_ray.errors import DataError, InvalidError, StorageError, TrainingError
from maas_ray.training.ray_train.controller import TorchTrainer, Trainer, _cause, would_return

GONE = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called"
)


class FailedError(Exception):
    def __init__(self, failures: dict[int, Exception]) -> None:
        self.worker_failures = failures


def test_the_process_that_is_gone_is_named_not_those_that_waited_for_it():
    failures = {0: RuntimeError("connection closed by peer"), 1: WorkerHealthCheckFailedError("", RuntimeError(GONE))}
    told = "worker 1 died (Worker unexpectedly exits with a connection error code 2. End of file.)"
    assert _cause(FailedError(failures)) == told


def test_an_error_is_told_by_its_last_line():
    failures = {1: ValueError("Traceback\n  somewhere\nthe cause\n")}
    assert _cause(FailedError(failures)) == "worker 1 failed (ValueError: the cause)"


@pytest.mark.parametrize(
    ("failures", "returns"),
    [
        ({0: TypeError("loss() takes 2 arguments")}, True),
        ({0: UserExceptionWithTraceback(DataError("vocabulary"), "Traceback")}, True),
        ({0: DataError("vocabulary"), 1: RuntimeError("connection closed by peer")}, True),
        ({0: TrainingError("refused", code="deepspeed_refused")}, True),
        ({0: InvalidError("no_tokens", "no token")}, True),
        ({0: RuntimeError("CUDA error"), 1: RuntimeError("connection closed by peer")}, False),
        ({0: StorageError("the disk is full")}, False),
        ({0: TypeError("broken"), 1: WorkerHealthCheckFailedError("", RuntimeError(GONE))}, False),
        ({}, False),
    ],
)
def test_workers_start_again_unless_they_would_fail_in_the_same_way(failures: dict[int, Exception], returns: bool):
    assert would_return(FailedError(failures)) is returns


def test_no_process_is_started_that_divides_datasets_among_workers(monkeypatch: pytest.MonkeyPatch):
    given: dict[str, Any] = {}

    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda _, **arguments: given.update(arguments))
    trainer = Trainer(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    trainer._initialize_and_run_controller(callbacks=trainer._create_default_callbacks())
    kinds = {type(callback) for callback in given["callbacks"]}
    assert BackendSetupCallback in kinds
    assert DatasetsCallback not in kinds
