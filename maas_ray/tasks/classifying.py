"""What tasks share that give a row one label of several."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maas_ray.errors import DataError
from maas_ray.tasks.metrics import classification, mean_loss
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import AnswerRow, Row, TensorSpec, UnlearntError, shortest
from maas_ray.tasks.task import Outcomes, Task
from maas_ray.tasks.traits import Trait

if TYPE_CHECKING:
    import torch


def fit_labels(found: Iterable[str]) -> list[str]:
    """The labels of a training split in the order of their ids: numbers by value, before words.

    Raises:
        DataError: there are fewer than two.
    """
    labels = sorted(set(found), key=lambda label: (0, int(label), "") if label.isdecimal() else (1, 0, label))
    if len(labels) < 2:
        raise DataError(f"classification needs two labels or more; the training split has {labels}.")
    return labels


class Labelled(AnswerRow):
    """What a row is."""

    label: str
    """The likeliest class."""
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
    def _label_places(self) -> dict[str, int]:
        return {label: place for place, label in enumerate(self.labels)}

    def label_ids(self, rows: Iterable[Row], column: str = "label") -> np.ndarray:
        """Of each row, int64 [n]; -1 where it has no label (a request).

        Raises:
            UnlearntError: training has no such label.
        """
        found = []
        for row in rows:
            if column in row and row[column] not in self._label_places:
                raise UnlearntError(f"label {row[column]!r} does not occur in the training split")
            found.append(self._label_places[row[column]] if column in row else -1)
        return np.array(found, np.int64)

    def label_trait(self, ids: np.ndarray) -> Trait:
        """The classes of rows, from `label_ids`."""
        return Trait("label", "label", [self.labels[place] if place >= 0 else None for place in ids.tolist()])

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
        """`loss` in nats a row, and those of `metrics.classification`."""
        return {"loss": mean_loss(outcomes), **classification(outcomes, self.labels)}

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
