"""Keras 3 models on the torch backend as networks: called with named tensors, with stable parameter names."""

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from maas_ray.errors import DataError


class KerasNetwork(nn.Module):
    """A Keras model, with its variables as this module's parameters.

    They are named by position: Keras numbers layers through a process (`dense_7`), so its own names differ in the next
    process.

    Args:
        model: the Keras model, already built.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._held = (model,)  # in a tuple, so that torch does not register the variables a second time
        for name, variable in self._variables():
            value = variable.value
            if variable.trainable:
                self.register_parameter(name, value)
            else:  # for example, statistics of normalisation
                self.register_buffer(name, value)

    def _variables(self) -> Iterator[tuple[str, Any]]:
        for index, variable in enumerate(self._held[0].variables):
            yield f"v{index:03d}_{variable.name.replace('.', '_')}", variable

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move or convert, as `to` does, and point Keras to the tensors that torch put in place of its buffers."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, variable in self._variables():
            variable._value = getattr(self, name)
        return self

    @classmethod
    def built(cls, model: Any, task: Any) -> Self:
        """A Keras model as a network; it is built on rows of zeros unless it is built already.

        Args:
            model: the Keras model.
            task: the fitted `Task`.
        """
        import keras

        if keras.backend.backend() != "torch":
            raise DataError(
                f"Keras uses the backend {keras.backend.backend()!r}; set KERAS_BACKEND=torch before it is imported.",
                code="wrong_keras_backend",
            )
        if not model.built:
            rows = {name: np.zeros((2, *column.shape), column.dtype) for name, column in task.stored.items()}
            with torch.no_grad():
                task.loss(_Called(model), task.collate(rows))
        return cls(model)

    def forward(self, **tensors: torch.Tensor) -> Any:
        """The model's output, in this module's mode: training or not."""
        return _Called(self._held[0])(training=self.training, **tensors)


class _Called:
    """A Keras model called with named tensors: a single one is passed as it is, several as a dict."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, training: bool = False, **tensors: torch.Tensor) -> Any:
        import keras

        given: Any = next(iter(tensors.values())) if len(tensors) == 1 else tensors
        with keras.device(str(next(iter(tensors.values())).device)):
            return self._model(given, training=training)
