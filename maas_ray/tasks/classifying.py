"""Classification, of any kind of row: labels, loss, outcomes and answers."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maas_ray.errors import DataError, UnlearntError
from maas_ray.tasks.cells import indices
from maas_ray.tasks.metrics import CountedMetrics, classification, counted_classification, mean_loss
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import AnswerRow, Row, TensorSpec, shortest
from maas_ray.tasks.task import Outcomes, Task
from maas_ray.tasks.traits import Trait

if TYPE_CHECKING:
    import torch


def fit_labels(names: Iterable[str]) -> list[str]:
    """The labels of a training split in the order of their ids: numbers by value, then words.

    Raises:
        DataError: there are fewer than two.
    """
    labels = sorted(set(names), key=lambda label: (0, int(label), "") if label.isdecimal() else (1, 0, label))
    if len(labels) < 2:
        raise DataError(
            f"the training split has {len(labels)} labels: {labels}. Classification needs at least two.",
            code="too_few_labels",
        )
    return labels


class Labelled(AnswerRow):
    """The class of a row."""

    label: str
    """The most likely class."""
    scores: dict[str, float]
    """The probability of each class."""


class Classifying(Task):
    """A fitted task whose network gives logits of labels."""

    answer: ClassVar[type[AnswerRow]] = Labelled

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """Names of the classes, in the order of `scores`."""

    @property
    def class_names(self) -> list[str]:
        return self.labels

    @abstractmethod
    def logits(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """fp32 [B, labels] of a collated batch."""

    @cached_property
    def _label_ids(self) -> dict[str, int]:
        return indices(self.labels)

    def label_ids(self, rows: Iterable[Row], column: str = "label") -> np.ndarray:
        """The label's id of each row, int64 [n]; -1 for a row without a label (a request).

        Raises:
            UnlearntError: the label does not occur in the training split.
        """
        ids = []
        for row in rows:
            if column in row and row[column] not in self._label_ids:
                raise UnlearntError(f"label {row[column]!r} does not occur in the training split")
            ids.append(self._label_ids[row[column]] if column in row else -1)
        return np.array(ids, np.int64)

    def label_trait(self, ids: np.ndarray) -> Trait:
        """The classes of rows, from `label_ids`."""
        return Trait("label", "label", [self.labels[index] if index >= 0 else None for index in ids.tolist()])

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        """Cross entropy in nats."""
        import torch.nn.functional as F

        return F.cross_entropy(self.logits(model, batch), batch["label"])

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        import torch.nn.functional as F

        logits, label = self.logits(model, batch), batch["label"]
        return {
            "loss": F.cross_entropy(logits, label, reduction="none").double().cpu().numpy(),
            "label": label.cpu().numpy(),
            "scores": logits.softmax(-1).cpu().numpy(),
        }

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats per row, and the metrics of `metrics.classification`."""
        return {"loss": mean_loss(outcomes), **classification(outcomes, self.labels)}

    def counted_metrics(self, outcomes: Outcomes) -> CountedMetrics:
        loss, rest = outcomes["loss"], counted_classification(outcomes, self.labels)
        return lambda counts: {"loss": float(counts @ loss / counts.sum()), **rest(counts)}

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("label", "BYTES", (-1,)), TensorSpec("scores", "FP32", (-1, len(self.labels))))

    def to_answer(self, outputs: Mapping[str, Any]) -> Labelled:
        scores = dict(zip(self.labels, map(shortest, outputs["scores"]), strict=True))
        return Labelled(label=outputs["label"], scores=scores)

    def answered(self, logits: "torch.Tensor") -> dict[str, np.ndarray]:
        """Logits as `outputs`: `label` (names, [n]) and `scores` (probabilities, float32 [n, labels])."""
        scores = logits.softmax(-1).numpy()
        return {"label": np.array(self.labels, object)[scores.argmax(-1)], "scores": scores}
