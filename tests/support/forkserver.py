"""Ray workers that are forked from a process with the libraries imported, instead of started from nothing.

A Ray worker is a Python process that imports torch, Transformers and DeepSpeed: up to eight seconds of CPU. A training
run starts eight processes, so a test of training would spend most of its time on imports. In tests, Ray starts
`fork_worker.py` in place of its own `setup_worker.py`. It sends its arguments, variables and output files to the
server below, which forks. The fork runs Ray's own `default_worker.py`, and imports Ray itself: Ray reads what
identifies a process, such as its job, when it is imported, and forks of a process that had imported it drew the same
random ids, so that one training worker read the rows of another.

Other modules too may read a variable when they are imported. The server records which they read. A worker for which one
of them has another value is started the ordinary way. `TEST_FORK=0` starts all workers the ordinary way.
"""

import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from tests.support import ROOT

SOCKET = "TEST_FORK_SOCKET"
FIRST = "TEST_FORK_SERVER"
MODULES = (
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # every engine imports it, and with it all of torch.compile
    "maas_ray.training.worker.loop",
    "maas_ray.training.run",
    "maas_ray.training.validation.validator",
    "mlflow.tracking",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn.metrics",
    "torch.utils.data",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)
# A fork has one thread, so the libraries must not start more when they are imported.
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# On a machine without GPUs these change nothing at import, or the fork applies them itself.
HARMLESS = {*SINGLE_THREADED, FIRST, "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "PYTHONWARNINGS"}


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Run the server while the block runs. Yields the program that Ray starts in place of its `setup_worker.py`.

    Args:
        directory: where the socket and the log go.
    """
    path, log = directory / "fork.sock", directory / "fork.log"
    # A raylet sets RAY_CLIENT_MODE for each worker.
    own = SINGLE_THREADED | {"DS_ACCELERATOR": "cpu", "RAY_CLIENT_MODE": "0"}
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forkserver", str(path)],
            cwd=ROOT,
            env={FIRST: "1"} | os.environ | own,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while not path.exists():
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        os.environ[SOCKET] = str(path)
        yield str(Path(__file__).with_name("fork_worker.py"))
    finally:
        os.environ.pop(SOCKET, None)
        server.terminate()
        server.wait()


def _serve(path: str) -> None:
    variables_read = _import_modules()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.unready")
    listener.listen(64)
    Path(f"{path}.unready").rename(path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    listener.settimeout(5)
    parent = os.getppid()
    while os.getppid() == parent:  # a killed test run leaves no server behind
        with suppress(OSError):  # nobody came for five seconds, or a program was killed while it waited
            connection, _ = listener.accept()
            connection.settimeout(30)
            with connection:
                _answer(connection, listener, variables_read)


def _answer(connection: socket.socket, listener: socket.socket, variables_read: dict[str, str | None]) -> None:
    """Fork a worker, unless one of its variables differs."""
    request, files = _receive(connection)
    if different := _different(variables_read, request["environment"]):
        print("started, not forked:", *different, flush=True)
        connection.sendall(b"n")
    elif os.fork():
        connection.sendall(b"y")
    else:
        listener.close()
        connection.close()
        _become_worker(request, files)
    for file in files:
        os.close(file)


def _import_modules() -> dict[str, str | None]:
    """Import the modules. Returns the variables that they read, with their values."""
    before, read = dict(os.environ), {"PYTHONPATH"}
    plain = type(os.environ)

    class Recording(plain):  # type: ignore[misc, valid-type]
        def __getitem__(self, name: str) -> str:
            read.add(name)
            return super().__getitem__(name)

    os.environ.__class__ = Recording
    for name in MODULES:
        importlib.import_module(name)
    os.environ.__class__ = plain
    assert "ray" not in sys.modules
    gc.collect()
    gc.freeze()  # forks share these pages
    # Nothing in maas_ray reads a variable when it is imported.
    return {name: before.get(name) for name in read - HARMLESS if not str(name).startswith("MAAS_")}


def _different(variables: dict[str, str | None], environment: dict[str, str]) -> list[str]:
    return [name for name, value in variables.items() if environment.get(name) != value]


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The request and the worker's standard streams. A worker that was killed while it asked is a ConnectionError."""
    data, files, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not data.endswith(b"\n"):
        more = connection.recv(1 << 16)
        if not more:
            for file in files:
                os.close(file)
            raise ConnectionResetError("the worker ended before it had asked")
        data += more
    return json.loads(data), files


def _become_worker(request: dict[str, Any], files: list[int]) -> NoReturn:
    import numpy as np
    import torch

    status: object = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(request["directory"])
        _set_variables(request["environment"])
        if os.environ.get("PYTHONWARNINGS") == "ignore":
            warnings.simplefilter("ignore")
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
        random.seed()
        np.random.seed()
        sys.argv = request["arguments"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def _set_variables(environment: dict[str, str]) -> None:
    """Make the variables of this process those of the worker.

    The first one stays: Ray looks for the process's title right before it.
    """
    for name in os.environ.keys() - environment.keys() - {FIRST}:
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


if __name__ == "__main__":
    _serve(sys.argv[1])
