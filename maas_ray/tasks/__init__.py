"""The tasks, by Hugging Face's pipeline tags. A new one is a module here and a line in the tables below."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from maas_ray.errors import CorruptError
from maas_ray.spec import Spec
from maas_ray.tasks.base import (
    TASK_FILE,
    AnswerRow,
    Column,
    NetworkSpec,
    Packing,
    RequestRow,
    Row,
    Task,
    TaskSpec,
    TensorSpec,
)
from maas_ray.tasks.image_classification import Cnn, ImageClassification, ImageClassificationSpec
from maas_ray.tasks.text_generation import Llama, Pretrained, TextGeneration, TextGenerationSpec

TASKS: tuple[type[Task], ...] = (TextGeneration, ImageClassification)

AnyTaskSpec = Annotated[TextGenerationSpec | ImageClassificationSpec, Field(discriminator="type")]
AnyNetworkSpec = Annotated[Llama | Pretrained | Cnn, Field(discriminator="type")]


class _TaskDocument(Spec):
    task: AnyTaskSpec


def load_task(directory: Path) -> Task:
    """The task that was saved into a local directory: a dataset's `task/`, or a model bundle.

    Raises:
        CorruptError: there is no readable `task.json`.
    """
    try:
        document = json.loads((directory / TASK_FILE).read_text(encoding="utf-8"))
        spec = _TaskDocument.parse({"task": document["task"]}, source=str(directory / TASK_FILE)).task
        state = document["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{directory / TASK_FILE} cannot be read: {error}") from error
    task_type = next(task for task in TASKS if task.spec_type is type(spec))
    return task_type.load_state(spec, state, directory)


__all__ = [
    "TASKS",
    "AnswerRow",
    "AnyNetworkSpec",
    "AnyTaskSpec",
    "Column",
    "NetworkSpec",
    "Packing",
    "RequestRow",
    "Row",
    "Task",
    "TaskSpec",
    "TensorSpec",
    "load_task",
]
