"""Errors that every API can answer with, and the limits and waiting times that they name.

Messages and codes are the same over HTTP and gRPC, at a gateway and on a model's own path.
"""

from collections.abc import Sequence

from maas_ray.errors import OverloadedError, RequestError

RETRY_AFTER_S = 1
"""Seconds after which a client that was refused for load should try again."""
BACKPRESSURE = {"status_code": 429, "retry_after_s": RETRY_AFTER_S}
"""Serve's own answer when the queue of an application is full."""
BODY_SECONDS = 120.0
"""Longest time in which a request's body must arrive: until then it occupies a slot that others could use."""


MAX_ERROR = 4000
"""Characters of an error's message: it may repeat what the client sent, which may be megabytes."""


def overloaded() -> OverloadedError:
    """All replicas are busy and the queue is full."""
    return OverloadedError(f"All replicas are busy and the queue is full. Try again in {RETRY_AFTER_S} s.")


def body_too_slow() -> RequestError:
    """The body did not arrive in time."""
    return RequestError(
        f"The body did not arrive within {BODY_SECONDS:g} s. Send the request again.",
        code="request_timeout",
        status=408,
    )


def body_too_large(limit: int) -> RequestError:
    """The body has more bytes than the limit."""
    return RequestError(
        f"The body is larger than the limit of {limit:,} bytes. Send a smaller request.",
        code="request_too_large",
        status=413,
    )


def too_many_bodies() -> OverloadedError:
    """The process holds as many bytes of large bodies as it may."""
    return OverloadedError(f"The server is receiving too many large bodies. Try again in {RETRY_AFTER_S} s.")


def unsupported_encoding(encoding: str, supported: Sequence[str]) -> RequestError:
    """The body has a `Content-Encoding` that is not supported."""
    return RequestError(
        f"Content-Encoding: {encoding[:80]!r} is not supported. Use {' or '.join(supported)}, or none.",
        param="Content-Encoding",
        code="unsupported_encoding",
        status=415,
    )


def invalid_encoding(encoding: str) -> RequestError:
    """The body is not encoded as its `Content-Encoding` says."""
    return RequestError(
        f"The body is not valid {encoding}, as its Content-Encoding says, or not complete.",
        param="Content-Encoding",
        code="invalid_encoding",
    )


def timed_out(model: str, timeout_s: float) -> RequestError:
    """The model did not answer in time."""
    return RequestError(
        f"The model {model!r} did not answer within {timeout_s:g} s; the request was cancelled.",
        code="timeout",
        status=504,
    )


def unavailable(model: str, why: str) -> RequestError:
    """The model exists but cannot answer now."""
    return RequestError(
        f"The model {model!r} is unavailable: {why}. Try again later.", code="model_unavailable", status=503
    )


def of_another_task(model: str, version: str) -> RequestError:
    """The model was replaced, while it was asked, by a version that does something else."""
    return unavailable(model, f"it was replaced by {version}, of another task")


def internal_error(request_id: str) -> RequestError:
    """A fault of the server. Its details are for the log only."""
    return RequestError(
        f"The server failed to answer. The cause is in its log, under request id {request_id}.",
        code="internal_error",
        status=500,
    )
