"""What a model is for, as training and serving both know it.

    raw row ──TaskSpec.parse_row▶ row ──Task.encode──▶ stored columns ──Task.collate──▶ tensors ──▶ network
               (prepare only)        (prepare, and every request)     (train, evaluate, serve)

A `TaskSpec` is what a user writes under `task:`. Fitting it on the training split gives a `Task`, which
owns everything that must be the same in training and in serving. A `Task` saves itself into a directory
(a prepared dataset's `task/`, a model bundle) and is loaded from there; no second copy of any of its
logic exists. Imports torch only inside the methods that compute.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maas_ray.errors import CorruptError
from maas_ray.spec import Spec
from maas_ray.tasks.custom_network import load_network
from maas_ray.tasks.network import CONFIG_FILE, SOURCE_FIELD, Forward, NetworkSpec, load_config, load_weights, type_of
from maas_ray.tasks.rows import AnswerRow, Column, Packing, RequestRow, Row, Steps, TensorSpec
from maas_ray.tasks.traits import Trait
from maas_ray.user_code.source import SourceCode

if TYPE_CHECKING:
    import torch

Outcomes = dict[str, np.ndarray]
"""Results of rows, by name: one entry a row in each array."""

TASK_FILE = "task.json"


class TaskSpec(Spec, ABC):
    """What a user writes under `task:`; named by Hugging Face's pipeline tags."""

    type: str
    """Which task."""

    own_source: ClassVar[SourceCode | None] = None
    """The user's own code that it is from."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns a source must give. Those called `image` and `audio` hold files; `REST` is all others."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """What of a parsed row a model sees; rows that agree in it never straddle splits."""

    @property
    def steps(self) -> Steps | None:
        """How a table's rows are joined before they are parsed; None: each is an example."""
        return None

    def identity(self) -> dict[str, Any]:
        """What decides, beside the rows, what fitting gives: the spec, with digests in place of files it names."""
        return self.document()

    @abstractmethod
    def parse_row(self, row: Row) -> Row | None:
        """A raw row in the types this task works on, or None for an empty one.

        Raises:
            ValueError: the row is malformed; says how.
        """

    @abstractmethod
    def fit(self, rows: Iterable[Row]) -> "Task":
        """Fit the features on parsed rows of the training split, read once, in a stable order."""


class Task(ABC):
    """A fitted task."""

    spec_type: ClassVar[type[TaskSpec]]
    networks: ClassVar[tuple[type[NetworkSpec], ...]]
    """The networks that can do this task."""
    auto_model: ClassVar[str] = ""
    """Transformers' Auto class of models for this task. Empty: none of them is."""
    unit: ClassVar[str]
    """What throughput counts: `tokens` or `rows`."""
    kind: ClassVar[str]
    """How it is served: `generate` (token by token, continuous batching) or `predict` (one call a batch)."""
    headline: ClassVar[tuple[str, ...]]
    """The metrics a person looks at first, best first."""
    request: ClassVar[type[RequestRow]]
    """One row that is asked the plain way. Fields that are no tensor of `inputs` are parameters of the answer."""
    answer: ClassVar[type[AnswerRow]]
    """What is answered to it."""
    file: ClassVar[str] = ""
    """The field of `request` that holds the bytes of a file where one is sent. Empty: it takes none."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    # --- features

    @property
    @abstractmethod
    def stored(self) -> dict[str, Column]:
        """The columns of a prepared dataset, beside `index`."""

    @property
    def packing(self) -> Packing | None:
        """How encoded rows are packed into stored rows; None: they are not, `encode` gives stored rows."""
        return None

    @property
    def growth(self) -> float:
        """About how many times as many bytes `encode` gives as it is given."""
        return 1.0

    @property
    def units_per_row(self) -> int:
        """How many of `unit` one stored row holds."""
        return 1

    @abstractmethod
    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """Parsed rows to stored columns: an array [n, *shape] each, or a list of n arrays if packed.

        A row may give several stored rows. One that gives none is refused.

        Raises:
            ValueError: one cannot be encoded; says why, in words that count alike rows together.
        """

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes that `outcomes` has `scores` of, in their order. Empty: it has none."""
        return ()

    # --- looking

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """What a person wants counted of parsed rows and of what `encode` made of them: lengths, labels, targets."""
        return []

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """One stored row in the task's own words: texts, numbers, lists, arrays, or media of `tasks.traits`.

        Args:
            stored: a value of each stored column, [*shape].
        """
        return {name: stored[name].tolist() if stored[name].ndim == 0 else stored[name] for name in self.stored}

    # --- state

    @abstractmethod
    def save_state(self, directory: Path) -> dict[str, Any]:
        """Write the fitted features as files; what is small is returned and kept in `task.json`."""

    @classmethod
    @abstractmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "Task":
        """The opposite of `save_state`."""

    def save(self, directory: Path) -> None:
        """Write `task.json` and the features' files into a directory."""
        state = self.save_state(directory)
        document: dict[str, Any] = {"task": self.spec.document(), "features": state, "signature": self.signature()}
        if self.spec.own_source is not None:
            self.spec.own_source.write(directory)
            document["source"] = self.spec.own_source.digest
        (directory / TASK_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    # --- model

    @abstractmethod
    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        """Stored columns, arrays [n, *shape], to the tensors a network and `loss` take, on the CPU."""

    @abstractmethod
    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        """The training loss of a collated batch: a scalar, the mean over the batch."""

    # --- training

    def weights(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """The weight of each row in a training step, int64 [n]: 1, or how many units `loss` takes its mean over.

        Passes of a step weigh as much as their rows together, so that the gradients of a step do not depend on how
        its rows are divided. A task whose `loss` is a mean over tokens returns the tokens of each row. If all weights
        of a pass are 0, its loss must still be finite.

        Args:
            rows: stored columns, arrays [n, *shape].
        """
        return np.ones(len(next(iter(rows.values()))), np.int64)

    def parameters(self, network: "torch.nn.Module") -> "Iterable[torch.nn.Parameter] | list[dict[str, Any]]":
        """The parameters to optimize, as torch's optimizers take them: one group, or a dict for each group.

        A group is `{"params": [...]}` with settings that differ for it, such as `weight_decay` or `lr`. The groups and
        their order must depend on the network alone.
        """
        return network.parameters()

    def augment(
        self,
        batch: dict[str, "torch.Tensor"],
        generator: "torch.Generator",
    ) -> dict[str, "torch.Tensor"]:
        """A collated batch as training sees it, changed at random. Only training passes call this.

        Args:
            batch: as `collate` gives it, on the CPU.
            generator: seeded by the run, the step and the rank; every draw must use it, so that resuming is exact.
        """
        return batch

    @abstractmethod
    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        """What `metrics` are made of: one entry for each row of a collated batch, on the CPU.

        Always has `loss`, float64 [n]. Beside it stand, by the kind of task:
        classification: `label` int64 [n], `scores` float32 [n, labels], probabilities;
        regression and forecasting: `target`, `prediction` float64 [n] or [n, horizon];
        labels of a sequence: `label`, `prediction`, arrays of lists of names;
        speech: `reference`, `hypothesis`, arrays of strings;
        embeddings: `query`, `positive` float32 [n, width];
        generation: `loss` summed over the row, `tokens`, `bytes` int64 [n], `position_loss`, `position_tokens`
        [n, 16] by where in the sequence.
        """

    def by_row(self, outcomes: Outcomes) -> Outcomes:
        """Outcomes in which each row stands alone: `metrics` of them are the same, and may be made again of rows drawn
        from them with replacement. Where a row is measured against the others, that is done here, once.
        """
        return outcomes

    @abstractmethod
    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics from the outcomes of all rows. Always has `loss`; what these rows do not define is left out."""

    def config_fields(self) -> dict[str, Any]:
        """What this task sets in the configuration of a model of `auto_model`: its labels, say."""
        return {}

    def check_pretrained(self, config: Any, directory: Path) -> None:  # noqa: B027  most tasks take any
        """Return if a Transformers model can do this task.

        Args:
            config: its configuration.
            directory: where it lies.

        Raises:
            DataError: it cannot; says what to change.
        """

    def write_companions(self, config: Any, directory: Path) -> None:  # noqa: B027  most tasks have none
        """Write into a bundle what tools beside Transformers want to know of a model of Transformers.

        Args:
            config: the model's configuration.
            directory: the bundle's files.
        """

    def load_model(self, directory: Path) -> "torch.nn.Module":
        """The network of a model bundle lying in a local directory: fp32, in eval mode.

        Raises:
            CorruptError: it holds none that this task knows.
        """
        config = load_config(directory)
        document = config.get("maas_network")
        if document is not None and SOURCE_FIELD in config:
            network = load_network(document, directory, config[SOURCE_FIELD])
            return load_weights(network.build(self), directory)
        if document is not None:
            found = next((one for one in self.networks if type_of(one) == document.get("type")), None)
            if found is None:
                raise CorruptError(f"{directory}/{CONFIG_FILE} names no network for {self.spec.type}: {document}.")
            return load_weights(found.parse(document, source=f"{directory}/{CONFIG_FILE}").build(self), directory)
        if not self.auto_model:
            raise CorruptError(f"{directory}/{CONFIG_FILE} names no network of this platform.")
        import transformers

        auto = getattr(transformers, self.auto_model)
        model: torch.nn.Module = auto.from_pretrained(directory, local_files_only=True, dtype="float32")
        return model.eval()

    # --- serving

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tensors that a request carries; the first dimension is the batch."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Tensors that an answer carries; the first dimension is the batch."""

    def signature(self) -> dict[str, Any]:
        """Inputs and outputs as JSON, as the Open Inference Protocol's metadata lists them."""
        return {
            side: [asdict(tensor) | {"shape": list(tensor.shape)} for tensor in tensors]
            for side, tensors in (("inputs", self.inputs), ("outputs", self.outputs))
        }

    @abstractmethod
    def to_inputs(self, row: Any) -> dict[str, Any]:
        """A `request` as one row of `inputs`.

        Raises:
            RequestError: a value is not one this task can take; `param` is the field.
        """

    @abstractmethod
    def to_answer(self, outputs: Mapping[str, Any]) -> AnswerRow:
        """One row of `outputs` in the task's own words."""

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer a batch: `inputs` named and shaped as `self.inputs`, the answer as `self.outputs`.

        Only tasks whose `kind` is `predict` have it.

        Raises:
            RequestError: a value is not one this task can take.
        """
        raise TypeError(f"{self.spec.type} answers by generating; it has no predict().")


def outcomes_of(
    task: Task, model: Forward, batches: Iterable[Mapping[str, np.ndarray]], device: "torch.device"
) -> Outcomes:
    """A task's outcomes of batches of stored columns, from which `Task.metrics` are made."""
    import torch

    with torch.inference_mode():
        return joined(
            [
                task.outcomes(model, {name: tensor.to(device) for name, tensor in task.collate(stored).items()})
                for stored in batches
            ]
        )


def joined(parts: Iterable[Outcomes]) -> Outcomes:
    """Outcomes of some rows, and of others behind them."""
    parts = [part for part in parts if part]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
