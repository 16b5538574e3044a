"""A user's own task and network by import path."""

from pathlib import Path
from typing import Any

from maas_ray.data.spec import PrepareSpec
from maas_ray.tasks import Task
from maas_ray.training.spec import TrainSpec

CODE = """
import torch
from torch import nn
from torch.nn import functional as F

from maas_ray.own import Label, ModuleTask, Tensor

SCALE = 1.0


class Net(nn.Module):
    def __init__(self, task, hidden: int = 4, bias: bool = True):
        super().__init__()
        self.first = nn.Linear(2, hidden, bias=bias)
        self.last = nn.Linear(hidden, len(task.labels["kind"]))

    def forward(self, x):
        return self.last(self.first(x).relu()) * SCALE


class Mine(ModuleTask):
    features = {"x": Tensor("float32", (2,))}
    targets = {"kind": Label()}
    answers = {"kind": Tensor("str"), "scores": Tensor("float32", (2,))}

    def row_loss(self, output, kind):
        return F.cross_entropy(output, kind, reduction="none")

    def decode(self, output):
        return {"kind": [self.labels["kind"][n] for n in output.argmax(-1)], "scores": output.softmax(-1)}
"""
ROWS = [{"x": [0.0, 1.0], "kind": "a"}, {"x": [1.0, 0.0], "kind": "b"}]


def prepare_spec(task: str = "mine:Mine", **more: Any) -> PrepareSpec:
    source = {"format": "jsonl", "path": "rows.jsonl"}
    return PrepareSpec.parse({"dataset": "d", "task": {"type": task, **more}, "sources": [source]})


def fitted(spec: PrepareSpec) -> Task:
    return fitted_on(spec, ROWS)


def fitted_on(spec: PrepareSpec, rows: list[dict[str, Any]]) -> Task:
    parsed = [spec.task.parse_row(row) for row in rows]
    return spec.task.fit(row for row in parsed if row is not None)


def save_bundle(task: Task, directory: Path, **arguments: Any) -> Path:
    import torch
    from safetensors.torch import save_file

    network_spec = TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": "mine:Net", **arguments}}).network
    torch.manual_seed(0)
    module = network_spec.build(task)
    directory.mkdir()
    task.save(directory)
    network_spec.write_config(module, task, directory)
    save_file(module.state_dict(), directory / "model.safetensors")
    return directory
