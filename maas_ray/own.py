"""A task around a network of your own, in a few lines: named, typed tensors in, a loss, an answer out.

    class Wine(ModuleTask):
        features = {"measures": Tensor("float32", (13,))}
        targets = {"kind": Label()}
        answers = {"kind": Tensor("str")}

        def row_loss(self, output, kind):
            return F.cross_entropy(output, kind, reduction="none")

        def decode(self, output):
            return {"kind": [self.labels["kind"][index] for index in output.argmax(-1)]}

The spec names it as `task: {type: "my_wine:Wine"}`, and a network as `network: {type: "my_wine:Net"}`. For anything
beyond tensors of a fixed shape, write a `maas_ray.tasks.Task`. docs/own-model.md builds one.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, TypeAdapter, create_model

from maas_ray.errors import DataError, InvalidError, RequestError, UnlearntError
from maas_ray.tasks import AnswerRow, Column, RequestRow, Row, Task, TaskSpec, TensorSpec
from maas_ray.tasks.cells import indices, label
from maas_ray.tasks.fitting import Names, SummedTaskSpec
from maas_ray.tasks.metrics import classification, mean_loss, regression
from maas_ray.tasks.network import Forward
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
        dtype: float32, float64, int64, int32, uint8 or bool; in answers also str.
        shape: shape of one row's value; `()` for a scalar.
    """

    dtype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in _DATATYPES or not all(size > 0 for size in self.shape):
            raise DataError(
                f"{self}: dtype must be one of {', '.join(_DATATYPES)}, and sizes must be above 0.",
                code="invalid_tensor",
            )

    @property
    def annotation(self) -> Any:
        """The type of one row's value: a scalar, or nested lists of a fixed length."""
        annotation: Any = {"str": str, "bool": bool}.get(self.dtype, float if self.dtype.startswith("float") else int)
        for size in reversed(self.shape):
            annotation = Annotated[list[annotation], Field(min_length=size, max_length=size)]
        return annotation

    def described(self, name: str) -> TensorSpec:
        """The tensor in the Open Inference Protocol's metadata."""
        return TensorSpec(name, _DATATYPES[self.dtype], (-1, *self.shape))

    def parse(self, name: str, value: Any) -> np.ndarray:
        """A value of a file or a request as an array. A text is read as the value that it spells, as in CSV.

        Raises:
            InvalidError: the value does not fit this tensor exactly.
        """
        if isinstance(value, (np.ndarray, np.generic)):
            value = value.tolist()
        strict = not isinstance(_first(value), (str, Decimal))
        try:
            with np.errstate(over="ignore"):  # an overflow is reported below
                array = np.array(_reader(self).validate_python(value, strict=strict), self.dtype)
        except (ValueError, OverflowError) as error:
            raise InvalidError(
                "wrong_type", f"{name} must be {self.dtype} {list(self.shape)}; it is {str(value)[:60]!r}"
            ) from error
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidError("not_finite", f"{name} holds a number that is not finite in {self.dtype}")
        return array


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
    """A class, by name. Names are collected from the training split; networks and losses see the index of a name."""


class ModuleTaskSpec(SummedTaskSpec):
    """`task: {type: "my_module:MyTask"}`"""

    task_class: ClassVar[Any]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.task_class.features, *self.task_class.targets)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.task_class.features)

    def parse_row(self, row: Row) -> Row | None:
        """Arrays, and the names of labels; None if a value is missing."""
        kinds = self.task_class.features | self.task_class.targets
        labels = {n: label(row[n]) for n, kind in kinds.items() if isinstance(kind, Label)}
        if not all(labels.values()) or any(row[n] is None for n in kinds):
            return None
        return labels | {n: kind.parse(n, row[n]) for n, kind in kinds.items() if isinstance(kind, Tensor)}

    def totals(self) -> Names:
        return Names(*(name for name, kind in self.task_class.targets.items() if isinstance(kind, Label)))

    def fitted(self, sample: None, totals: Names) -> "ModuleTask":
        """The names of labels, sorted."""
        fitted: ModuleTask = self.task_class(self, {name: sorted(names) for name, names in totals.names.items()})
        return fitted


class ModuleTask(Task):
    """Base of a task of your own.

    Args:
        spec: the fields under `task:`.
        labels: class names of each target that is a `Label`, in the order of their indices.
    """

    features: ClassVar[dict[str, Tensor]]
    """Inputs of the network, by the name of its argument, which is also the column."""
    targets: ClassVar[dict[str, Tensor | Label]]
    """Targets to learn, by the name of the column."""
    answers: ClassVar[dict[str, Tensor]]
    """Outputs of `decode`, by name."""

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
        fields: dict[str, Any] = {n: (tensor.annotation, ...) for n, tensor in cls.features.items()}
        cls.request = create_model(f"{name}Row", __base__=RequestRow, __module__=module, **fields)
        answers: dict[str, Any] = {n: (tensor.annotation, ...) for n, tensor in cls.answers.items()}
        cls.answer = create_model(f"{name}Answer", __base__=AnswerRow, __module__=module, **answers)

    def __init__(self, spec: TaskSpec, labels: dict[str, list[str]]) -> None:
        super().__init__(spec)
        self.labels = labels
        self._indices = {name: indices(names) for name, names in labels.items()}

    # --- to be written by the user

    @abstractmethod
    def row_loss(self, output: Any, **targets: "torch.Tensor") -> "torch.Tensor":
        """The loss of each row, [n], from the network's output in float32 and the targets by name."""

    @abstractmethod
    def decode(self, output: Any) -> Mapping[str, Any]:
        """Answers by the names of `answers`: a value for each row, as tensors, arrays or lists."""

    def outcome(self, output: Any, **targets: "torch.Tensor") -> "Mapping[str, torch.Tensor]":
        """Inputs of `score` for each row, besides its loss.

        By default: for a single label, the softmax of an output [n, labels]; for a single number, an output of the
        target's size as the prediction; else nothing.
        """
        if len(targets) == 1 and hasattr(output, "numel"):
            ((name, target),) = targets.items()
            if name in self.labels and output.shape == (len(target), len(self.labels[name])):
                return {"label": target, "scores": output.softmax(-1)}
            if target.is_floating_point() and output.numel() == target.numel():
                return {"target": target.double(), "prediction": output.reshape(target.shape).double()}
        return {}

    def score(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of all rows, besides `loss`. By default, the usual metrics of classification or regression."""
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
        for name, known in self._indices.items():
            unknown = next((value for value in columns[name] if value not in known), None)
            if unknown is not None:
                raise UnlearntError(f"{name} {unknown!r} does not occur in the training split")
            columns[name] = [known[value] for value in columns[name]]
        return {name: np.array(values, self.stored[name].dtype) for name, values in columns.items()}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Labels, and targets and features that are single numbers."""
        traits = []
        for name, kind in {**self.targets, **self.features}.items():
            if isinstance(kind, Label):
                traits.append(Trait("label", name, [str(row[name]) for row in rows]))
            elif kind.shape == ():
                numbers = np.array(encoded[name], np.float64)
                traits.append(Trait("target" if name in self.targets else "column", name, numbers))
        return traits

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
        """The network's output in float32; the network is called in its own precision."""
        from torch.utils._pytree import tree_map

        parameters = model.parameters() if hasattr(model, "parameters") else ()
        dtype = next((value.dtype for value in parameters if value.is_floating_point()), None)
        inputs = {name: batch[name] for name in self.features}
        if dtype is not None:
            inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        return tree_map(
            lambda value: value.float() if hasattr(value, "is_floating_point") and value.is_floating_point() else value,
            model(**inputs),
        )

    def _targets(self, batch: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        return {name: batch[name] for name in self.targets}

    def _row_loss(self, output: Any, batch: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        loss = self.row_loss(output, **self._targets(batch))
        rows = len(next(iter(batch.values())))
        if tuple(loss.shape) != (rows,):
            raise DataError(
                f"{self.spec.type}.row_loss returned shape {list(loss.shape)} for {rows} rows; return a loss for each "
                'row, for example with reduction="none".',
                code="wrong_shape",
            )
        return loss

    def loss(self, model: Forward, batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
        return self._row_loss(self._output(model, batch), batch).mean()

    def outcomes(self, model: Forward, batch: "dict[str, torch.Tensor]") -> Outcomes:
        output = self._output(model, batch)
        outcomes = {"loss": self._row_loss(output, batch).double(), **self.outcome(output, **self._targets(batch))}
        return {name: value.detach().cpu().numpy() for name, value in outcomes.items()}

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The mean loss of a row, and the metrics of `score`."""
        return {"loss": mean_loss(outcomes), **self.score(outcomes)}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor.described(name) for name, tensor in self.features.items())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor.described(name) for name, tensor in self.answers.items())

    def to_inputs(self, row: Any) -> dict[str, Any]:
        inputs = {}
        for name, tensor in self.features.items():
            try:
                inputs[name] = tensor.parse(name, getattr(row, name))
            except ValueError as error:
                raise RequestError(f"{error}.", param=name, code="invalid_value") from error
        return inputs

    def to_answer(self, outputs: Mapping[str, Any]) -> AnswerRow:
        return self.answer(**{name: np.asarray(outputs[name]).tolist() for name in self.answers})

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`features` [n, *shape] to `answers` [n, *shape]."""
        import torch

        for name, tensor in self.features.items():
            if inputs[name].shape[1:] != tensor.shape:
                raise RequestError(
                    f"{name} has shape {list(inputs[name].shape)}; it must be {['n', *tensor.shape]}.",
                    param=name,
                )
        with torch.inference_mode():
            batch = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.features}
            answers = self.decode(self._output(model, batch))
        if set(answers) != set(self.answers):
            raise TypeError(f"{self.spec.type}.decode returned {sorted(answers)} instead of {sorted(self.answers)}")
        dtypes: dict[str, Any] = {n: object if t.dtype == "str" else t.dtype for n, t in self.answers.items()}
        return {name: np.asarray(answers[name], dtype=dtypes[name]) for name in self.answers}
