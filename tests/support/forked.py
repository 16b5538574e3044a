"""Processes forked from one that has the large libraries imported, for tests that need several at once."""

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

IMPORTED = [
    "maas_ray.registry.versions",
    "maas_ray.tasks.text.networks",
    "maas_ray.training.deepspeed.engine",
    "maas_ray.training.export",
    "maas_ray.training.worker.rehearsal",
    "mlflow",
    "safetensors.torch",
    "tests.support.bundles",
    "tests.support.weighing",
    "transformers.models.llama.modeling_llama",
]


def context() -> ForkServerContext:
    """Multiprocessing's context. Its server starts at the first call, and ends with this process."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(IMPORTED)
    # Read when the libraries are imported. A fork has one thread, so they must not start more.
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    variables |= {"DS_ACCELERATOR": "cpu", "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        forkserver.ensure_running()
    finally:
        for name in variables:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
    return forking
