"""The platform's own errors, in one small tree.

    MaasError
    ├── InvalidError         (ValueError)    one value is wrong: a field's in a validator, a cell's in a row
    │   └── UnlearntError                    a row holds a value that its task was not fitted on
    ├── SpecError            (ValueError)    a spec, an override or a setting is wrong
    ├── NotFoundError        (LookupError)   a dataset, bundle, version or endpoint does not exist
    ├── ConflictError        (RuntimeError)  the name has other content already, or another writer was faster
    ├── StorageError         (OSError)       bytes could not be read or written
    │   └── CorruptError                     bytes differ from what their manifest promises
    ├── DataError            (ValueError)    the input cannot become a dataset
    ├── ClusterError         (RuntimeError)  the Ray cluster is missing or cannot be used
    ├── UntrustedCodeError   (PermissionError) an artifact contains code that is not trusted here
    ├── TrainingError        (RuntimeError)  a training run failed
    │   ├── NonFiniteLossError               the loss or its gradient became NaN or infinite
    │   └── PreflightError                   a check before the first step failed, and would fail again
    ├── DeploymentError      (RuntimeError)  a version could not be deployed
    ├── GateError            (RuntimeError)  a version is not good enough for an alias
    └── RequestError         (ValueError)    a request is wrong; the client has to change it
        ├── ModelNotFoundError               the model is not served here
        ├── RequestRefusedError              the model's engine refuses the request
        ├── PromptTooLongError               prompt plus answer exceed the model's context
        └── OverloadedError                  the server is busy; retry later

Each also inherits the standard error a caller would expect. A message says what happened, the value, the
place and the fix, in that order; `str(error)` is meant for a person and may be reworded. `error.code` is meant
for programs and tests and does not change: `snake_case`, one code for one cause. Errors pickle with every
attribute, because they are raised in one process of a cluster and read in another.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeGuard

from maas_ray.redact import hide_secrets


class MaasError(Exception):
    """Base of the platform's errors.

    Args:
        message: what happened, the value, the place and the fix, for a person.
        code: a stable name of the cause in `snake_case`; by default the name of the class's kind of error.
    """

    default_code: ClassVar[str] = "error"
    """The code of an error that was raised without one."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        message = hide_secrets(message)
        super().__init__(message)
        self.message = message
        self.code: str = code or type(self).default_code

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses take further arguments; rebuild from the state, not through their __init__.
        return _rebuild, (type(self), self.message, self.__dict__)


def _rebuild(cls: type[MaasError], message: str, state: dict[str, Any]) -> MaasError:
    error = cls.__new__(cls, message)
    error.args = (message,)
    error.__dict__.update(state)
    return error


class InvalidError(MaasError, ValueError):
    """One value is wrong: a field's, in a spec's or a body's validator, or a cell's, in a row.

    The code that asks for the value adds its place and raises another error. So an `InvalidError` that ends a process
    is a fault of the program, as any `ValueError` there would be; see `is_final`.
    """

    default_code = "invalid_value"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, code=code)


class UnlearntError(InvalidError):
    """A row holds a value that fitting did not see, such as an unknown label; `Task.encode` raises it.

    When such rows arrive later, the dataset must be prepared again to learn the new values.
    """

    default_code = "not_in_training"

    def __init__(self, message: str) -> None:
        super().__init__(self.default_code, message)


class Problem(str):
    """One line of a `SpecError`: the field, the value and the fix, with the code of what is wrong."""

    code: str

    def __new__(cls, text: str, code: str | None = None) -> "Problem":
        problem = super().__new__(cls, hide_secrets(text))
        problem.code = code or str(getattr(text, "code", SpecError.default_code))
        return problem

    def __reduce__(self) -> tuple[Any, ...]:
        return Problem, (str(self), self.code)


def is_final(error: BaseException | None) -> TypeGuard[MaasError]:
    """True if an error in a chain of causes is one that a person should see: raised on purpose, with its place."""
    return isinstance(error, MaasError) and not isinstance(error, InvalidError)


class SpecError(MaasError, ValueError):
    """A spec, an override or a setting is wrong.

    Args:
        source: the file or other origin of the values.
        problems: one line for each problem, with the field, the value and the fix. A `Problem` carries its own
            code; a plain string gets `code`.
        code: the code of plain strings.

    Attributes:
        codes: the code of each problem. `code` is the first of them.
    """

    default_code = "invalid_value"

    def __init__(self, source: str, problems: Sequence[str], *, code: str | None = None) -> None:
        lines = "".join(f"\n  {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        self.source = source
        self.problems = [p if isinstance(p, Problem) else Problem(p, code) for p in problems]
        self.codes = [problem.code for problem in self.problems]
        super().__init__(f"{source}: {count}{lines}", code=self.codes[0] if self.codes else code)


class NotFoundError(MaasError, LookupError):
    """A dataset, bundle, version or endpoint does not exist."""

    default_code = "not_found"


class ConflictError(MaasError, RuntimeError):
    """The name has other content already, or another writer was faster."""

    default_code = "conflict"


class StorageError(MaasError, OSError):
    """Bytes could not be read or written."""

    default_code = "storage_failed"


class CorruptError(StorageError):
    """Bytes differ from what their manifest promises."""

    default_code = "corrupt"


class DataError(MaasError, ValueError):
    """The input cannot become a dataset, or a dataset does not fit its use."""

    default_code = "unusable_data"


class ClusterError(MaasError, RuntimeError):
    """The Ray cluster is missing or cannot be used."""

    default_code = "cluster_unavailable"


class UntrustedCodeError(MaasError, PermissionError):
    """An artifact contains code that is not trusted here."""

    default_code = "untrusted_code"


class TrainingError(MaasError, RuntimeError):
    """A training run failed."""

    default_code = "training_failed"


class NonFiniteLossError(TrainingError):
    """The loss or its gradient became NaN or infinite.

    Args:
        step: the optimizer step.
        loss: the value, NaN or infinite.
        advice: likely causes, given the configuration.
        of: the name of the value, such as `loss`.
    """

    def __init__(self, step: int, loss: float, advice: str, of: str = "loss") -> None:
        super().__init__(f"the {of} became {loss} at step {step}; training stopped.\n{advice}", code="non_finite_loss")
        self.step = step
        self.loss = loss


class PreflightError(TrainingError):
    """A check of the workers before their first step failed. It fails on all of them, and would fail again."""

    default_code = "preflight_failed"


class DeploymentError(MaasError, RuntimeError):
    """A version could not be deployed."""

    default_code = "deployment_failed"


class GateError(MaasError, RuntimeError):
    """A version is not good enough for an alias, or was not measured."""

    default_code = "gate_not_passed"


class RequestError(MaasError, ValueError):
    """A request to a model is wrong; the client has to change it.

    Args:
        message: the problem, for the client's developer.
        param: the field of the request that is wrong, if there is one.
        code: a short machine-readable name, such as `context_length_exceeded`. Clients see it.
        status: the HTTP status of the response.
    """

    default_code = "invalid_value"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message, code=code)
        self.param = param
        self.status = status


class ModelNotFoundError(RequestError):
    """The model is not served here."""

    def __init__(self, model: str, served: list[str]) -> None:
        known = ", ".join(served) or "none"
        super().__init__(
            f"The model {model!r} does not exist here. Served models: {known}.",
            param="model",
            code="model_not_found",
            status=404,
        )


class RequestRefusedError(RequestError):
    """The engine does not accept a request that passed every check of ours.

    Args:
        why: the engine's own words.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"The engine that serves this model refuses the request: {why}.", code="refused_by_engine")


class PromptTooLongError(RequestError):
    """Prompt plus answer exceed the model's context."""

    def __init__(self, prompt_tokens: int, max_tokens: int, context: int, param: str) -> None:
        super().__init__(
            f"This model's maximum context length is {context} tokens, but {prompt_tokens + max_tokens} "
            f"were requested ({prompt_tokens} in the prompt, {max_tokens} to generate). Shorten the "
            "prompt or lower max_tokens.",
            param=param,
            code="context_length_exceeded",
        )


class OverloadedError(RequestError):
    """The server is busy; the client should retry later."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="rate_limit_exceeded", status=429)
