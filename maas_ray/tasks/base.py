"""The path that tasks written for 0.1 import from; their code lies in saved datasets and bundles."""

from maas_ray.errors import UnlearntError
from maas_ray.tasks.network import CONFIG_FILE, Forward, NetworkSpec, OnDevice, load_config, load_weights, type_of
from maas_ray.tasks.rows import (
    REST,
    AnswerRow,
    Column,
    OptionalTensor,
    Packing,
    RequestRow,
    Row,
    Steps,
    TensorSpec,
    shortest,
)
from maas_ray.tasks.task import TASK_FILE, Outcomes, Task, TaskSpec, joined, outcomes_of

__all__ = [
    "CONFIG_FILE",
    "REST",
    "TASK_FILE",
    "AnswerRow",
    "Column",
    "Forward",
    "NetworkSpec",
    "OnDevice",
    "OptionalTensor",
    "Outcomes",
    "Packing",
    "RequestRow",
    "Row",
    "Steps",
    "Task",
    "TaskSpec",
    "TensorSpec",
    "UnlearntError",
    "joined",
    "load_config",
    "load_weights",
    "outcomes_of",
    "shortest",
    "type_of",
]
