"""A task around a network of your own, in a few lines: named, typed tensors in, a loss, an answer out.

    class Wine(ModuleTask):
        features = {"measures": Tensor("float32", (13,))}
        targets = {"kind": Label()}
        answers = {"kind": Tensor("str")}

        def row_loss(self, output, kind):
            return F.cross_entropy(output, kind, reduction="none")

        def decode(self, output):
            return {"kind": [self.labels["kind"][place] for place in output.argmax(-1)]}

Written under `task:` as `type: "my_wine:Wine"`, beside a network such as `type: "my_wine:Net"`. What this cannot say,
a `maas_ray.tasks.Task` can. docs/own-model.md builds one.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, TypeAdapter, create_model

from maas_ray.errors import DataError, RequestError
from maas_ray.tasks import AnswerRow, Column, RequestRow, Row, Task, TaskSpec, TensorSpec
from maas_ray.tasks.metrics import classification, mean_loss, regression
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import UnlearntError
from maas_ray.tasks.task import Outcomes
from maas_ray.tasks.traits import Trait

if TYPE_CHECKING:
    import torch

_DATATYPES = {
    "float32": "FP32",
    "float64": "FP64",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "UINT8",
    "bool": "BOOL",
    "str": "BYTES",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of one row.

    Args:
        dtype: float32, float64, int64, int32, uint8 or bool; of an answer also str.
        shape: of one row's value; `()` for a single one.
    """

    dtype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in _DATATYPES or not all(size > 0 for size in self.shape):
            raise DataError(f"{self}: give one of {', '.join(_DATATYPES)}, and sizes above 0.")

    @property
    def annotation(self) -> Any:
        """How a row of it is written: a value, or nested lists of a fixed length."""
        one: Any = {"str": str, "bool": bool}.get(self.dtype, float if self.dtype.startswith("float") else int)
        for size in reversed(self.shape):
            one = Annotated[list[one], Field(min_length=size, max_length=size)]
        return one

    def described(self, name: str) -> TensorSpec:
        """As the Open Inference Protocol's metadata has it."""
        return TensorSpec(name, _DATATYPES[self.dtype], (-1, *self.shape))

    def parse(self, name: str, value: Any) -> np.ndarray:
        """A value of a file or a request as an array; what is a text, as in CSV, may say the value.

        Raises:
            ValueError: it is not one, or not without changing it.
        """
        if isinstance(value, (np.ndarray, np.generic)):
            value = value.tolist()
        strict = not isinstance(_first(value), (str, Decimal))
        try:
            with np.errstate(over="ignore"):  # told below
                found = np.array(_reader(self).validate_python(value, strict=strict), self.dtype)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{name} is {str(value)[:60]!r}, not {self.dtype} {list(self.shape)}") from error
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise ValueError(f"{name} holds a number that is not finite in {self.dtype}")
        return found


@cache
def _reader(tensor: Tensor) -> TypeAdapter[Any]:
    return TypeAdapter(tensor.annotation)


def _first(value: Any) -> Any:
    """The first element of nested lists."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value


@dataclass(frozen=True)
class Label:
    """A class, by name. The names are those of the training split; a network and a loss see its number."""


class ModuleTaskSpec(TaskSpec):
    """`task: {type: "my_module:MyTask"}`"""

    task_class: ClassVar[Any]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.task_class.features, *self.task_class.targets)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.task_class.features)

    def parse_row(self, row: Row) -> Row | None:
        """Arrays, and labels as strings; None where one is missing."""
        kinds = self.task_class.features | self.task_class.targets
        if any(row[n] is None or (isinstance(kind, Label) and str(row[n]) == "") for n, kind in kinds.items()):
            return None
        return {n: str(row[n]) if isinstance(kind, Label) else kind.parse(n, row[n]) for n, kind in kinds.items()}

    def fit(self, rows: Iterable[Row]) -> "ModuleTask":
        """The names of labels, sorted."""
        found: dict[str, set[str]] = {
            n: set() for n, kind in self.task_class.targets.items() if isinstance(kind, Label)
        }
        for row in rows:
            for name, names in found.items():
                names.add(row[name])
        fitted: ModuleTask = self.task_class(self, {name: sorted(names) for name, names in found.items()})
        return fitted


class ModuleTask(Task):
    """Base of a task of your own.

    Args:
        spec: what was written under `task:`.
        labels: names of the classes of each target that is a `Label`, in the order of their numbers.
    """

    features: ClassVar[dict[str, Tensor]]
    """What the network is called with, by the name of its argument and of the column."""
    targets: ClassVar[dict[str, Tensor | Label]]
    """What is learnt, by the name of the column."""
    answers: ClassVar[dict[str, Tensor]]
    """What `decode` gives."""

    networks = ()
    unit, kind = "rows", "predict"
    headline = ("accuracy", "mse", "loss")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not all(hasattr(cls, name) for name in ("features", "targets", "answers")):
            return
        name, module = cls.__name__, cls.__module__
        cls.spec_type = create_model(f"{name}Spec", __base__=ModuleTaskSpec, __module__=module)
        cls.spec_type.task_class = cls  # type: ignore[attr-defined]
        asked: dict[str, Any] = {n: (tensor.annotation, ...) for n, tensor in cls.features.items()}
        cls.request = create_model(f"{name}Row", __base__=RequestRow, __module__=module, **asked)
        said: dict[str, Any] = {n: (tensor.annotation, ...) for n, tensor in cls.answers.items()}
        cls.answer = create_model(f"{name}Answer", __base__=AnswerRow, __module__=module, **said)

    def __init__(self, spec: TaskSpec, labels: dict[str, list[str]]) -> None:
        super().__init__(spec)
        self.labels = labels
        self._numbers = {name: {label: place for place, label in enumerate(names)} for name, names in labels.items()}

    # --- what a user writes

    @abstractmethod
    def row_loss(self, output: Any, **targets: "torch.Tensor") -> "torch.Tensor":
        """The loss of each row, [n]; `output` is the network's, in float32, and targets come by their names."""

    @abstractmethod
    def decode(self, output: Any) -> Mapping[str, Any]:
        """What is answered, by the names of `answers`: a value for each row, as tensors, arrays or lists."""

    def outcome(self, output: Any, **targets: "torch.Tensor") -> "Mapping[str, torch.Tensor]":
        """What `score` needs of each row, beside its loss.

        As it is: for one target that is a label, scores of an output [n, labels]; for one that is a number, what the
        network predicts, if it gives as many.
        """
        if len(targets) == 1 and hasattr(output, "numel"):
            ((name, target),) = targets.items()
            if name in self.labels and output.shape == (len(target), len(self.labels[name])):
                return {"label": target, "scores": output.softmax(-1)}
            if target.is_floating_point() and output.numel() == target.numel():
                return {"target": target.double(), "prediction": output.reshape(target.shape).double()}
        return {}

    def score(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of all rows, beside `loss`: as it is, the usual ones of classes or of numbers."""
        if "scores" in outcomes:
            return classification(outcomes, self.class_names)
        return regression(outcomes) if "prediction" in outcomes else {}

    # --- the Task

    @property
    def class_names(self) -> list[str]:
        return next(iter(self.labels.values()), [])

    @property
    def stored(self) -> dict[str, Column]:
        kinds: dict[str, Tensor | Label] = {**self.features, **self.targets}
        return {n: Column("int64") if isinstance(k, Label) else Column(k.dtype, k.shape) for n, k in kinds.items()}

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        columns = {name: [row[name] for row in rows] for name in self.stored}
        for name, numbers in self._numbers.items():
            unknown = next((value for value in columns[name] if value not in numbers), None)
            if unknown is not None:
                raise UnlearntError(f"{name} {unknown!r} does not occur in the training split")
            columns[name] = [numbers[value] for value in columns[name]]
        return {name: np.array(values, self.stored[name].dtype) for name, values in columns.items()}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Labels, and targets and features that are single numbers."""
        found = []
        for name, kind in {**self.targets, **self.features}.items():
            if isinstance(kind, Label):
                found.append(Trait("label", name, [str(row[name]) for row in rows]))
            elif kind.shape == ():
                numbers = np.array(encoded[name], np.float64)
                found.append(Trait("target" if name in self.targets else "column", name, numbers))
        return found

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return super().describe(stored) | {
            name: names[int(stored[name])] for name, names in self.labels.items() if int(stored[name]) < len(names)
        }

    def save_state(self, directory: Path) -> dict[str, Any]:
        return {"labels": self.labels}

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "ModuleTask":
        return cls(spec, state["labels"])

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        import torch

        return {name: torch.from_numpy(np.ascontiguousarray(batch[name])) for name in self.stored}

    def _output(self, model: Forward, batch: "Mapping[str, torch.Tensor]") -> Any:
        """What the network gives: called in its own precision, given on in float32."""
        from torch.utils._pytree import tree_map

        parameters = model.parameters() if hasattr(model, "parameters") else ()
        dtype = next((one.dtype for one in parameters if one.is_floating_point()), None)
        given = {name: batch[name] for name in self.features}
        if dtype is not None:
            given = {name: one.to(dtype) if one.is_floating_point() else one for name, one in given.items()}
        return tree_map(
            lambda one: one.float() if hasattr(one, "is_floating_point") and one.is_floating_point() else one,
            model(**given),
        )

    def _targets(self, batch: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        return {name: batch[name] for name in self.targets}

    def _row_loss(self, output: Any, batch: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        loss = self.row_loss(output, **self._targets(batch))
        rows = len(next(iter(batch.values())))
        if tuple(loss.shape) != (rows,):
            raise DataError(
                f"{self.spec.type}.row_loss gave shape {list(loss.shape)} for {rows} rows; give a loss for each, such "
                'as by reduction="none".'
            )
        return loss

    def loss(self, model: Forward, batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
        return self._row_loss(self._output(model, batch), batch).mean()

    def outcomes(self, model: Forward, batch: "dict[str, torch.Tensor]") -> Outcomes:
        output = self._output(model, batch)
        found = {"loss": self._row_loss(output, batch).double(), **self.outcome(output, **self._targets(batch))}
        return {name: value.detach().cpu().numpy() for name, value in found.items()}

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The mean loss of a row, and what `score` says."""
        return {"loss": mean_loss(outcomes), **self.score(outcomes)}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor.described(name) for name, tensor in self.features.items())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor.described(name) for name, tensor in self.answers.items())

    def to_inputs(self, row: Any) -> dict[str, Any]:
        found = {}
        for name, tensor in self.features.items():
            try:
                found[name] = tensor.parse(name, getattr(row, name))
            except ValueError as error:
                raise RequestError(f"{error}.", param=name, code="invalid_value") from error
        return found

    def to_answer(self, outputs: Mapping[str, Any]) -> AnswerRow:
        return self.answer(**{name: np.asarray(outputs[name]).tolist() for name in self.answers})

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`features` [n, *shape] to `answers` [n, *shape]."""
        import torch

        for name, tensor in self.features.items():
            if inputs[name].shape[1:] != tensor.shape:
                raise RequestError(
                    f"{name} has shape {list(inputs[name].shape)}; give [n, …{tensor.shape}].", param=name
                )
        with torch.inference_mode():
            batch = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.features}
            found = self.decode(self._output(model, batch))
        if set(found) != set(self.answers):
            raise TypeError(f"{self.spec.type}.decode gave {sorted(found)}, not {sorted(self.answers)}")
        dtypes: dict[str, Any] = {n: object if t.dtype == "str" else t.dtype for n, t in self.answers.items()}
        return {name: np.asarray(found[name], dtype=dtypes[name]) for name in self.answers}
