"""How a command ends: the message of an error on standard error, and the exit status.

The status is 2 for a spec, an override or a setting that is wrong, 1 for every other error, 130 for Ctrl-C and
143 for SIGTERM. Only unexpected errors, and all errors with `--verbose`, show a traceback.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from maas_ray.cli.options import VERBOSE


@contextmanager
def reported() -> Iterator[None]:
    """Report an error to a person and end the process with its status."""
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        # SIGTERM interrupts the code that runs exactly as Ctrl-C does. A shell ignores SIGINT for `maas train … &`.
        interrupt = signal.getsignal(signal.SIGINT)
        (interrupt if callable(interrupt) else signal.default_int_handler)(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # Typer turns Ctrl-C into 130
            raise
        _show("interrupted")
        sys.exit(143 if terminated else 130)
    except Exception as error:
        from maas_ray.errors import MaasError, SpecError

        if os.environ.get(VERBOSE, "").lower() in ("1", "true", "yes", "on"):
            raise
        cause = cause_of(error)
        if isinstance(cause, MaasError):
            _show(str(cause))
            sys.exit(2 if isinstance(cause, SpecError) else 1)
        last = str(error).strip().splitlines() or [""]
        _show(f"{type(error).__name__}: {last[-1]}\nThis error is unexpected; run with --verbose for a traceback.")
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)


def cause_of(error: BaseException) -> BaseException:
    """The platform's own error, taken out of Ray's wrappers around errors of other processes."""
    from maas_ray.errors import is_final

    inner: BaseException | None = error
    while inner is not None:
        wrapped = getattr(inner, "cause", None)  # a RayTaskError holds its cause and looks like it
        if isinstance(wrapped, BaseException) and wrapped is not inner:
            inner = wrapped
        elif is_final(inner):
            return inner
        else:
            inner = inner.__cause__
    return error


def _show(message: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(message, style="red", markup=False)
