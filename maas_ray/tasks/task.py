"""The task that a model does, shared by training and serving.

    raw row ──TaskSpec.parse_row▶ row ──Task.encode──▶ stored columns ──Task.collate──▶ tensors ──▶ network
               (prepare only)        (prepare, and every request)     (train, evaluate, serve)

A `TaskSpec` holds the fields that a user writes under `task:`. Fitting it on the training split gives a `Task`, which
owns everything that must be the same in training and in serving. A `Task` saves itself into a directory (a prepared
dataset's `task/`, a model bundle) and is loaded from there. Torch is imported only inside the methods that compute.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maas_ray.errors import CorruptError
from maas_ray.spec import Spec
from maas_ray.tasks.custom_network import load_network
from maas_ray.tasks.metrics import CountedMetrics
from maas_ray.tasks.network import CONFIG_FILE, SOURCE_FIELD, Forward, NetworkSpec, load_config, load_weights, type_of
from maas_ray.tasks.rows import AnswerRow, Column, Packing, RequestRow, Row, Steps, TensorSpec
from maas_ray.tasks.traits import Trait
from maas_ray.user_code.source import SourceCode

if TYPE_CHECKING:
    import torch

Outcomes = dict[str, np.ndarray]
"""Results of rows, by name: one entry a row in each array."""

TASK_FILE = "task.json"
ACCELERATION_FILE = "acceleration.json"  # has no influence on what a task computes, only on how fast


class TaskSpec(Spec, ABC):
    """The fields that a user writes under `task:`. Types are Hugging Face's pipeline tags."""

    type: str
    """Which task."""

    own_source: ClassVar[SourceCode | None] = None
    """The user's code that defines it. None: the platform does."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns that a source must have. `image` and `audio` hold files; `REST` means all other columns."""

    @property
    def optional(self) -> tuple[str, ...]:
        """Further columns that are read if a source has them; a row has them with `OPTIONAL_PREFIX`."""
        return ()

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Fields of a parsed row that a model sees. Rows with equal inputs never fall into different splits."""

    @property
    def steps(self) -> Steps | None:
        """How rows of a table are joined before they are parsed. None: each row is an example."""
        return None

    @property
    def drops(self) -> tuple[str, ...]:
        """Columns that are not read, although it takes all others."""
        return ()

    def identity(self) -> dict[str, Any]:
        """Fingerprint of what this spec decides about a dataset: its fields, with digests in place of named files."""
        return self.document()

    def advice(self, columns: Collection[str]) -> str:
        """The change of this spec that a source with these columns, but without the needed ones, suggests, or none."""
        return ""

    @abstractmethod
    def parse_row(self, row: Row) -> Row | None:
        """A raw row in the types that this task works on, or None if the row is empty.

        Raises:
            ValueError: the row is malformed. Equal mistakes have equal messages, so that they are counted together.
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
    """Transformers' Auto class of models for this task. Empty: there is none."""
    unit: ClassVar[str]
    """Unit of throughput: `tokens` or `rows`."""
    kind: ClassVar[str]
    """Kind of serving: `generate` (token by token, continuous batching) or `predict` (one call per batch)."""
    headline: ClassVar[tuple[str, ...]]
    """The metrics to show first, the most telling one first."""
    request: ClassVar[type[RequestRow]]
    """One row of a plain request. Fields that are not tensors of `inputs` are parameters of the answer."""
    answer: ClassVar[type[AnswerRow]]
    """One row of a plain answer."""
    couples_rows: ClassVar[bool] = False
    """True if a row's loss depends on the other rows of its forward pass. Then another `micro_batch_size` is another
    training."""
    file: ClassVar[str] = ""
    """The field of `request` that holds an uploaded file's bytes. Empty: the task takes no files."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    # --- features

    @property
    @abstractmethod
    def stored(self) -> dict[str, Column]:
        """The columns of a prepared dataset, besides `index`."""

    @property
    def packing(self) -> Packing | None:
        """How encoded rows are packed into stored rows. None: `encode` gives stored rows."""
        return None

    @property
    def remarks(self) -> list[str]:
        """Surprises of the fitted features that a person should know, a line each."""
        return []

    @property
    def growth(self) -> float:
        """Rough ratio of encoded bytes to the bytes of the parsed rows."""
        return 1.0

    @property
    def units_per_row(self) -> int:
        """How many `unit`s a stored row holds."""
        return 1

    @property
    def tokens_per_row(self) -> int:
        """Most tokens of text that a stored row holds, which decides how many rows a pass has by default. 0: none."""
        return self.units_per_row if self.unit == "tokens" else 0

    @abstractmethod
    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """Parsed rows to stored columns: an array [n, *shape] each, or a list of n arrays if packed.

        A row may give several stored rows, but not none.

        Raises:
            ValueError: a row cannot be encoded. Equal causes have equal messages, so that they are counted together.
        """

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes in the order of `scores` in `outcomes`. Empty: there are no scores."""
        return ()

    # --- views

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Traits to profile, of parsed rows and of their encoded columns: lengths, labels, targets."""
        return []

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """A stored row for a person to read: texts, numbers, lists, arrays, or media of `tasks.traits`.

        Args:
            stored: a value of each stored column, [*shape].
        """
        return {name: stored[name].tolist() if stored[name].ndim == 0 else stored[name] for name in self.stored}

    # --- state

    @abstractmethod
    def save_state(self, directory: Path) -> dict[str, Any]:
        """Write large features as files, and return small ones to be kept in `task.json`."""

    @classmethod
    @abstractmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "Task":
        """A task from what `save_state` wrote and returned."""

    def spec_document(self) -> dict[str, Any]:
        """The spec's fields as they are saved. An evaluation compares them, so older tasks keep the fields they had."""
        return self.spec.document()

    def save(self, directory: Path) -> None:
        """Write `task.json` and the features' files into a directory."""
        state = self.save_state(directory)
        document: dict[str, Any] = {"task": self.spec_document(), "features": state, "signature": self.signature()}
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
        """The parameters to optimize, as torch's optimizers take them: parameters, or a dict for each group.

        A group is `{"params": [...]}` with settings that differ for it, such as `weight_decay` or `lr`. The groups and
        their order must depend on the network alone. Parameters outside of groups are divided by the platform: weight
        decay spares biases, weights of normalisation layers and embeddings.
        """
        return network.parameters()

    def augment(
        self,
        batch: dict[str, "torch.Tensor"],
        generator: "torch.Generator",
    ) -> dict[str, "torch.Tensor"]:
        """A collated batch as training sees it, changed at random. Only training passes call this, in a thread.

        Args:
            batch: as `collate` gives it, on the CPU.
            generator: seeded by the run, the step and the rank; every draw must use it, so that resuming is exact.
        """
        return batch

    @abstractmethod
    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        """The inputs of `metrics`: one entry for each row of a collated batch, on the CPU.

        Always has `loss`, float64 [n]. Other entries depend on the kind of task:
        classification: `label` int64 [n], `scores` float32 [n, labels], probabilities;
        regression and forecasting: `target`, `prediction` float64 [n] or [n, horizon];
        labels of a sequence: `label`, `prediction`, arrays of lists of names;
        speech: `reference`, `hypothesis`, arrays of strings;
        embeddings: `query`, `positive` float32 [n, width];
        generation: `loss` summed over the row, `tokens`, `bytes` int64 [n], `position_loss`, `position_tokens`
        [n, 16] by where in the sequence.
        """

    def by_row(self, outcomes: Outcomes) -> Outcomes:
        """Outcomes that stay valid when rows are resampled with replacement; `metrics` of them are the same.

        Values that depend on other rows, such as a retrieval rank, are computed here, before resampling.
        """
        return outcomes

    @abstractmethod
    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics from the outcomes of all rows. Always has `loss`; undefined metrics are absent."""

    def counted_metrics(self, outcomes: Outcomes) -> CountedMetrics:
        """`metrics` of rows that count several times or not at all, as the bootstrap draws them.

        A task whose metrics need no copies of the rows overrides this.
        """
        outcomes = self.by_row(outcomes)

        def metrics(counts: np.ndarray) -> dict[str, float]:
            chosen = np.repeat(np.arange(len(counts)), counts)
            return self.metrics({name: values[chosen] for name, values in outcomes.items()})

        return metrics

    def config_fields(self) -> dict[str, Any]:
        """Fields that this task sets in the configuration of a model of `auto_model`, such as its labels."""
        return {}

    def check_pretrained(self, config: Any, directory: Path) -> None:  # noqa: B027  most tasks take any model
        """Return if a Transformers model can do this task.

        Args:
            config: its configuration.
            directory: the model's directory.

        Raises:
            DataError: it cannot; the message says what to change.
        """

    def write_companions(self, config: Any, directory: Path) -> None:  # noqa: B027  most tasks have no companions
        """Write files into a bundle that tools other than Transformers need to load a model of Transformers.

        Args:
            config: the model's configuration.
            directory: the bundle's files.
        """

    def load_model(self, directory: Path) -> "torch.nn.Module":
        """The network of a model bundle in a local directory: fp32, in eval mode.

        Raises:
            CorruptError: the bundle does not hold a network of this task.
        """
        config = load_config(directory)
        document = config.get("maas_network")
        if document is not None and SOURCE_FIELD in config:
            network = load_network(document, directory, config[SOURCE_FIELD])
            return load_weights(network.build(self), directory)
        if document is not None:
            known = next((network for network in self.networks if type_of(network) == document.get("type")), None)
            if known is None:
                raise CorruptError(
                    f"unknown network for {self.spec.type} in {directory}/{CONFIG_FILE}: {document}.",
                    code="unknown_network",
                )
            return load_weights(known.parse(document, source=f"{directory}/{CONFIG_FILE}").build(self), directory)
        if not self.auto_model:
            raise CorruptError(f"{directory}/{CONFIG_FILE} does not name a network.", code="unknown_network")
        import transformers

        auto = getattr(transformers, self.auto_model)
        model: torch.nn.Module = auto.from_pretrained(directory, local_files_only=True, dtype="float32")
        return model.eval()

    # --- serving

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tensors of a request; the first dimension is the batch."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Tensors of an answer; the first dimension is the batch."""

    def signature(self) -> dict[str, Any]:
        """Inputs and outputs as JSON, in the form of the Open Inference Protocol's metadata."""
        return {
            side: [asdict(tensor) | {"shape": list(tensor.shape)} for tensor in tensors]
            for side, tensors in (("inputs", self.inputs), ("outputs", self.outputs))
        }

    @abstractmethod
    def to_inputs(self, row: Any) -> dict[str, Any]:
        """A `request` as one row of `inputs`.

        Raises:
            RequestError: the task cannot take a value; `param` is the field.
        """

    @abstractmethod
    def to_answer(self, outputs: Mapping[str, Any]) -> AnswerRow:
        """One row of `outputs` as a plain answer."""

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer a batch: `inputs` named and shaped as `self.inputs`, the answer as `self.outputs`.

        Only tasks whose `kind` is `predict` implement it.

        Raises:
            RequestError: the task cannot take a value.
        """
        raise TypeError(f"{self.spec.type} generates its answers; predict() is not implemented")


def outcomes_of(
    task: Task, model: Forward, batches: Iterable[Mapping[str, np.ndarray]], device: "torch.device"
) -> Outcomes:
    """A task's outcomes of batches of stored columns, for `Task.metrics`."""
    import torch

    with torch.inference_mode():
        return joined(
            [
                task.outcomes(model, {name: tensor.to(device) for name, tensor in task.collate(stored).items()})
                for stored in batches
            ]
        )


def joined(parts: Iterable[Outcomes]) -> Outcomes:
    """The outcomes of several groups of rows, end to end."""
    parts = [part for part in parts if part]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
