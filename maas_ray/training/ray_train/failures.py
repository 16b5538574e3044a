"""Ray Train's errors translated into this platform's: the worker's own words first, not the traceback."""

import re
from typing import Any

from maas_ray.errors import (
    DataError,
    InvalidError,
    MaasError,
    PreflightError,
    SpecError,
    StorageError,
    TrainingError,
    UntrustedCodeError,
    is_final,
)

_PERMANENT = (DataError, PreflightError, SpecError, UntrustedCodeError)
# Mistakes in code or in a configuration. Weather, such as a lost connection, comes as OSError or RuntimeError.
_MISTAKES = (
    *(TypeError, AttributeError, AssertionError, NameError, ImportError, NotImplementedError),
    *(LookupError, ArithmeticError),
)
AT_START = "before its first step"
"""Note of an error before a worker's first step that may not pass: nothing but code, configuration and data made it."""
_GPU = re.compile(r"\bcu(da|dnn|blas)|\bhip\b|out of memory", re.I)  # a process that is ending may still hold it
_ADDRESS = re.compile(r"0x[0-9a-f]+")
# Their errors are neither OSError nor of a common class: object stores, HTTP, RPC, and processes of Ray.
_CLIENTS = {"aiohttp", "aiobotocore", "azure", "botocore", "google", "grpc", "httpcore", "httpx", "ray", "urllib3"}
_NETWORK_WORDS = re.compile(r"connection|timed? ?out|deadline|broken pipe|socket|unreachable|\bnccl\b|\bgloo\b", re.I)


def is_permanent(failure: Any) -> bool:
    """True if a worker would fail in the same way again: the data, the spec or the code must be changed."""
    cause = _platform_error(failure)
    if cause is not None:
        return isinstance(cause, _PERMANENT) or cause.code == "deepspeed_refused"
    raised = getattr(failure, "_base_exc", failure)
    at_start = AT_START in getattr(raised, "__notes__", ()) and not _GPU.search(str(raised))
    return at_start or isinstance(raised, (*_MISTAKES, InvalidError))


def may_pass(error: BaseException | None) -> bool:
    """True if an error may be gone at the next try although all its words are the same: storage, network, a process.

    Args:
        error: as a worker raises it. Its causes are lost when it is sent to another process.
    """
    import torch

    while error is not None:
        if isinstance(error, (OSError, EOFError, torch.distributed.DistError)):
            return True
        if type(error) is RuntimeError and _NETWORK_WORDS.search(str(error)):
            return True
        cause = getattr(error, "cause", None)  # an error in a task of Ray has it
        if not isinstance(cause, BaseException):
            if type(error).__module__.partition(".")[0] in _CLIENTS:
                return True
            cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        error = cause
    return False


def signatures(error: Any) -> set[tuple[str, ...]]:
    """Type, message and step of each worker's failure that says its step, for comparison with the next failure.

    Workers say it unless the error may pass.

    Args:
        error: Ray Train's.
    """
    raised = [getattr(failure, "_base_exc", failure) for failure in getattr(error, "worker_failures", {}).values()]
    return {
        (type(one).__name__, _ADDRESS.sub("", str(one)), *one.__notes__)
        for one in raised
        if getattr(one, "__notes__", None) and _platform_error(one) is None
    }


def translated(error: Any, run: str) -> MaasError:
    """The error of this platform for a `TrainingFailedError` of Ray Train.

    Args:
        error: Ray Train's.
        run: the run's name.
    """
    failures = sorted(getattr(error, "worker_failures", {}).items())
    # A worker that fails takes others with it. Its own words count, not those of their lost connections.
    failures.sort(key=lambda item: not is_permanent(item[1]))
    for cause in (_platform_error(failure) for _, failure in failures):
        if type(cause) is StorageError:
            return StorageError(
                f"{cause}\nThe run {run} had no restarts left. Once storage is back, starting it again resumes from "
                "its last checkpoint. To ride out longer outages, raise checkpoint.retry_seconds or max_failures.",
                code=cause.code,
            )
        if cause is not None:
            return cause
    for rank, failure in failures:
        raised = getattr(failure, "_base_exc", failure)  # Ray Train's wrapper adds the traceback
        place = "".join(f" {note}" for note in getattr(raised, "__notes__", []))
        last = f"{type(raised).__name__}{place}: {raised}"
        if is_permanent(failure):
            return TrainingError(
                f"worker {rank} of the run {run} failed, and would fail again: {last}\n"
                "With --verbose the whole traceback is shown.",
                code="worker_failed",
            )
        return TrainingError(
            f"worker {rank} failed, and the run {run} had no restarts left or failed at the same step again: {last}\n"
            "Starting it again resumes from its last checkpoint. With --verbose the whole traceback is shown.",
            code="worker_failed",
        )
    return TrainingError(f"run {run} failed: {error}")


def _platform_error(failure: Any) -> MaasError | None:
    """The error of this platform in a chain of causes."""
    while failure is not None and not is_final(failure):
        # Ray Train's wrapper of an exception is not raised from it.
        failure = getattr(failure, "_base_exc", None) or getattr(failure, "cause", None) or failure.__cause__
    return failure
