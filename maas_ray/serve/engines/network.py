"""The network of a task that predicts: in ONNX Runtime if the bundle contains `model.onnx`, else in Torch.

Knows nothing of Serve.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maas_ray.errors import DeploymentError
from maas_ray.serve.spec import ServingOptions
from maas_ray.tasks.network import Forward, OnDevice
from maas_ray.tasks.task import Task

if TYPE_CHECKING:
    import torch

ONNX_FILE = "model.onnx"


def load(task: Task, directory: Path, options: ServingOptions) -> tuple[Forward, str]:
    """The network for `Task.predict`, and the name of its engine for a person.

    Args:
        task: the bundle's task.
        directory: the bundle's files.
        options: how to work.

    Raises:
        DeploymentError: the options require an engine that is not available here.
    """
    carried = (directory / ONNX_FILE).is_file()
    if options.engine == "onnxruntime" or (options.engine == "auto" and carried and not options.resources.gpus):
        missing = ""
        if not carried:
            missing = f"the bundle does not contain {ONNX_FILE}"
        elif importlib.util.find_spec("onnxruntime") is None:
            missing = "onnxruntime is not installed where replicas run; `pip install 'maas-ray[onnx]'` there"
        if not missing:
            return OnnxNetwork(directory / ONNX_FILE, options), "onnxruntime"
        if options.engine == "onnxruntime":
            raise DeploymentError(
                f"engine: onnxruntime is not available: {missing}. Leave `engine` out, or serve another model.",
                code="engine_unavailable",
            )
        return _torch(task, directory, options), f"torch ({missing})"
    if options.engine == "torch.compile":
        import torch

        # Warm-up compiles it for one row and for any number of rows, so that no request waits for a compilation.
        return torch.compile(_torch(task, directory, options), dynamic=True), "torch.compile"
    return _torch(task, directory, options), "torch"


def warm_up_sizes(name: str) -> Sequence[int]:
    """Numbers of rows in the batches that a predictor computes before it reports ready."""
    return (1, 2) if name == "torch.compile" else (1,)


def answers(task: Task, network: Forward, rows: "list[_Row]") -> "list[_Row | Exception]":
    """Answers to rows of a task's inputs, in their order. Rows of the same shapes are computed together.

    A row that cannot be answered gets its error in place of an answer; the other rows are answered.
    """
    results: list[_Row | Exception] = [{}] * len(rows)
    by_shape: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        by_shape.setdefault(tuple((name, np.shape(value)) for name, value in row.items()), []).append(index)
    for indices in by_shape.values():
        answered = _together(task, network, [rows[index] for index in indices])
        for index, answer in zip(indices, answered, strict=True):
            results[index] = answer
    return results


def _together(task: Task, network: Forward, rows: "list[_Row]") -> "list[_Row | Exception]":
    try:
        answer = task.predict(network, {name: np.stack([row[name] for row in rows]) for name in rows[0]})
    except Exception as error:
        # One row must not fail the others, so each is computed alone.
        return [error] if len(rows) == 1 else [result for row in rows for result in _together(task, network, [row])]
    return [{name: array[row] for name, array in answer.items()} for row in range(len(rows))]


_Row = dict[str, Any]
"""One row of each tensor, by name."""


def _torch(task: Task, directory: Path, options: ServingOptions) -> Forward:
    import torch

    torch.set_num_threads(options.threads)
    module = task.load_model(directory)
    return OnDevice(module, "cuda") if options.resources.gpus else module


class OnnxNetwork:
    """A network in the ONNX format, called like the Torch module that it was exported from.

    Args:
        path: the file; its inputs are named like the outputs of `Task.collate`.
        options: how to work.

    Raises:
        DeploymentError: ONNX Runtime cannot load the network, or not on the device that it should use.
    """

    def __init__(self, path: Path, options: ServingOptions) -> None:
        import onnxruntime

        provider = "CUDAExecutionProvider" if options.resources.gpus else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise DeploymentError(
                "engine: onnxruntime needs the package onnxruntime-gpu to compute on GPUs. Install it, or leave "
                "`engine` out.",
                code="engine_unavailable",
            )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
        try:
            self._session = onnxruntime.InferenceSession(path, settings, providers=[provider])
        except Exception as error:  # its errors have no common base
            raise DeploymentError(f"ONNX Runtime cannot load {path.name}: {error}", code="model_load_failed") from error

    def __call__(self, **tensors: "torch.Tensor") -> Any:
        """The network's output as a tensor, or a tuple if it has several."""
        import torch

        outputs = self._session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
        tensors_out = tuple(torch.from_numpy(output) for output in outputs)
        return tensors_out[0] if len(tensors_out) == 1 else tensors_out
