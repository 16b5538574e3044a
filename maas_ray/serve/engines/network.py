"""What computes for a task that predicts: ONNX Runtime where the bundle carries `model.onnx`, else Torch. Knows nothing
of Serve.
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
    """What `Task.predict` calls, and its name for a person.

    Args:
        task: the bundle's task.
        directory: the bundle's files.
        options: how to work.

    Raises:
        DeploymentError: the options ask for what cannot be had here.
    """
    carried = (directory / ONNX_FILE).is_file()
    if options.engine == "onnxruntime" or (options.engine == "auto" and carried and not options.resources.gpus):
        missing = ""
        if not carried:
            missing = f"the bundle carries no {ONNX_FILE}"
        elif importlib.util.find_spec("onnxruntime") is None:
            missing = "onnxruntime is not installed where replicas run; `pip install 'maas-ray[onnx]'` there"
        if not missing:
            return OnnxNetwork(directory / ONNX_FILE, options), "onnxruntime"
        if options.engine == "onnxruntime":
            raise DeploymentError(
                f"engine: onnxruntime cannot be had: {missing}. Leave it out, or serve another model."
            )
        return _torch(task, directory, options), f"torch ({missing})"
    if options.engine == "torch.compile":
        import torch

        # Warm-up compiles it, for one row and for any number; what it meets later is compiled already.
        return torch.compile(_torch(task, directory, options), dynamic=True), "torch.compile"
    return _torch(task, directory, options), "torch"


def warm_up_sizes(name: str) -> Sequence[int]:
    """Rows of the batches that a predictor is asked before it reports ready."""
    return (1, 2) if name == "torch.compile" else (1,)


def answers(task: Task, network: Forward, rows: "list[_Row]") -> "list[_Row | Exception]":
    """Answers to rows of a task's inputs, in their order; rows of one shape are computed together.

    A row that cannot be answered has the error in place of its answer; its neighbours are answered.
    """
    found: list[_Row | Exception] = [{}] * len(rows)
    alike: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(tuple((name, np.shape(value)) for name, value in row.items()), []).append(place)
    for places in alike.values():
        for place, answer in zip(places, _together(task, network, [rows[place] for place in places]), strict=True):
            found[place] = answer
    return found


def _together(task: Task, network: Forward, rows: "list[_Row]") -> "list[_Row | Exception]":
    try:
        answer = task.predict(network, {name: np.stack([row[name] for row in rows]) for name in rows[0]})
    except Exception as error:
        # One row must not fail its neighbours: each is tried alone.
        return [error] if len(rows) == 1 else [one for row in rows for one in _together(task, network, [row])]
    return [{name: array[row] for name, array in answer.items()} for row in range(len(rows))]


_Row = dict[str, Any]
"""One row of each tensor, by name."""


def _torch(task: Task, directory: Path, options: ServingOptions) -> Forward:
    import torch

    torch.set_num_threads(options.threads)
    module = task.load_model(directory)
    return OnDevice(module, "cuda") if options.resources.gpus else module


class OnnxNetwork:
    """A network in ONNX's format, called as the Torch module it was exported from.

    Args:
        path: inputs have the names of what `Task.collate` gives.
        options: how to work.

    Raises:
        DeploymentError: ONNX Runtime cannot load it, or not where it should compute.
    """

    def __init__(self, path: Path, options: ServingOptions) -> None:
        import onnxruntime

        provider = "CUDAExecutionProvider" if options.resources.gpus else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise DeploymentError("engine: onnxruntime computes on GPUs only with the package onnxruntime-gpu.")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
        try:
            self._session = onnxruntime.InferenceSession(path, settings, providers=[provider])
        except Exception as error:  # its errors have no common base
            raise DeploymentError(f"ONNX Runtime cannot load {path.name}: {error}") from error

    def __call__(self, **tensors: "torch.Tensor") -> Any:
        """The network's one output as a tensor; of several, a tuple."""
        import torch

        outputs = self._session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
        found = tuple(torch.from_numpy(output) for output in outputs)
        return found[0] if len(found) == 1 else found
