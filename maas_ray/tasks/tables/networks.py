"""Networks that `network:` names for tasks on tables."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from maas_ray.tasks.network import NetworkSpec
from maas_ray.tasks.tables.task import TableTask

if TYPE_CHECKING:
    import torch


class Linear(NetworkSpec):
    """Linear regression, or logistic regression for classes."""

    type: Literal["linear"] = "linear"
    """Which network."""

    def build(self, task: Any) -> "torch.nn.Module":
        return _network(task, ())


class Mlp(NetworkSpec):
    """A multi-layer perceptron."""

    type: Literal["mlp"] = "mlp"
    """Which network."""
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((64, 64), min_length=1)
    """Widths of the hidden layers, from the columns on."""
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    """Activation after each hidden layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of each hidden layer's values dropped in training."""

    def build(self, task: Any) -> "torch.nn.Module":
        activation = {"relu": "ReLU", "gelu": "GELU", "tanh": "Tanh"}[self.activation]
        return _network(task, self.hidden_sizes, activation=activation, dropout=self.dropout)


class Recurrent(NetworkSpec):
    """A recurrent network: RNN, GRU or LSTM."""

    type: Literal["recurrent"] = "recurrent"
    """Which network."""
    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    """The recurrent unit."""
    hidden_size: int = Field(64, ge=1)
    """Width of each layer."""
    layers: int = Field(1, ge=1)
    """Recurrent layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the values between layers dropped in training."""

    def build(self, task: Any) -> "torch.nn.Module":
        from maas_ray.tasks.networks.recurrent import RecurrentForecaster

        return RecurrentForecaster(
            cell=self.cell.upper(),
            channels=len(task.spec.channels),
            hidden=self.hidden_size,
            layers=self.layers,
            horizon=task.spec.horizon,
            dropout=self.dropout,
        )


def _network(task: TableTask, hidden: tuple[int, ...], **options: Any) -> "torch.nn.Module":
    from maas_ray.tasks.networks.table import TableNetwork

    features = task.features
    return TableNetwork(
        numbers=len(features.numbers),
        categories=len(features.categories),
        values=task.categories,
        hidden=hidden,
        outputs=task.outputs_of_network,
        **options,
    )
