"""Restarts of workers, in words."""

import pickle
from typing import Any

import pytest
import ray
import torch
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.callbacks import BackendSetupCallback, DatasetsCallback
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from maas_ray.errors import DataError, InvalidError, StorageError, TrainingError
from maas_ray.ray_private.train import FailureDecision
from maas_ray.training.ray_train.controller import (
    TorchTrainer,
    Trainer,
    _cause,
    _WorthRetrying,
    would_return,
)
from maas_ray.training.ray_train.failures import AT_START, may_pass

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


def at_start(error: Exception) -> Exception:
    error.add_note(AT_START)
    return error


@pytest.mark.parametrize(
    ("failures", "returns"),
    [
        ({0: TypeError("loss() takes 2 arguments")}, True),
        ({0: UserExceptionWithTraceback(DataError("vocabulary"), "Traceback")}, True),
        ({0: DataError("vocabulary"), 1: RuntimeError("connection closed by peer")}, True),
        ({0: TrainingError("refused", code="deepspeed_refused")}, True),
        ({0: InvalidError("no_tokens", "no token")}, True),
        ({0: IndexError("index out of range in self")}, True),
        ({0: RuntimeError("CUDA error"), 1: RuntimeError("connection closed by peer")}, False),
        ({0: StorageError("the disk is full")}, False),
        ({0: at_start(RuntimeError("expected scalar type BFloat16 but found Float"))}, True),
        ({0: at_start(RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"))}, False),
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


def noted(error: Exception, step: int) -> Exception:
    """An error as a worker raises it and the controller receives it."""
    error.add_note(f"at step {step}")
    return pickle.loads(pickle.dumps(UserExceptionWithTraceback(error, "Traceback")))


def test_an_error_that_comes_again_at_the_same_step_ends_the_run():
    def decisions(*failures: dict[int, Exception]) -> list[FailureDecision]:
        policy = _WorthRetrying(FailureConfig(max_failures=3))
        return [policy.make_decision(WorkerGroupError("", each)) for each in failures]

    shapes, lost = "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)", RuntimeError("connection closed by peer")
    again, ends = FailureDecision.RETRY, FailureDecision.RAISE
    wrong = {step: {0: noted(RuntimeError(f"{shapes} <x at 0x7f{step}>"), 6), 1: lost} for step in range(2)}
    assert decisions(wrong[0], wrong[1]) == [again, ends]
    assert decisions(wrong[0], {0: noted(RuntimeError(shapes), 7)}) == [again, again]
    assert decisions({0: lost}, {0: lost}) == [again, again]  # it does not say its step
    gone = {1: WorkerHealthCheckFailedError("", RuntimeError(GONE))}
    assert decisions(wrong[0], wrong[0] | gone) == [again, again]
    storage = {0: noted(StorageError("the disk is full"), 6)}
    assert decisions(storage, storage) == [again, again]


def test_an_error_of_storage_or_of_the_network_may_pass_even_if_it_comes_again():
    class EndpointConnectionError(Exception):
        """Botocore's errors are no OSErrors."""

    EndpointConnectionError.__module__ = "botocore.exceptions"

    def raised(error: Exception, cause: Exception | None = None) -> Exception:
        try:
            raise error from cause
        except Exception as caught:
            return caught

    closed = "[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:41953"
    for error in (
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        OSError(5, "Input/output error"),
        EndpointConnectionError('Could not connect to the endpoint URL: "http://s3/"'),
        torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited"),
        RuntimeError(closed),
        ray.exceptions.GetTimeoutError("Get timed out"),
        raised(RuntimeError("the batch cannot be read"), ConnectionError("refused")),
        ray.exceptions.RayTaskError("read", "Traceback", OSError(5, "Input/output error")),
    ):
        assert may_pass(error), error
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        raised(ValueError("a label"), KeyError("x")),
        ray.exceptions.RayTaskError("read", "Traceback", ValueError("a label")),
    ):
        assert not may_pass(error), error
