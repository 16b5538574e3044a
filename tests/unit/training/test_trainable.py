"""Networks that DeepSpeed cannot train are refused with the remedy, before it has them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from maas_ray.errors import PreflightError
from maas_ray.training.trainable import check_shardable, check_trainable
from tests.support.errors import raises

Make = Callable[[], nn.Module]


def config(stage: int = 1, precision: str = "fp32") -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage}, "bf16": {"enabled": precision == "bf16"}}


def with_parameter(value: torch.Tensor, *, trained: bool = True) -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 2))
    module.own = nn.Parameter(value, requires_grad=trained)
    return module


class Stateful(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}


REFUSED: list[tuple[Make, dict[str, Any], str]] = [
    (lambda: nn.Sequential(nn.LazyLinear(3)), config(), "0.weight, 0.bias"),
    (lambda: with_parameter(torch.tensor(1.0)), config(), "own: a scalar"),
    (lambda: with_parameter(torch.tensor(1.0), trained=False), config(), "own: a scalar"),
    (lambda: with_parameter(torch.zeros(0, 4)), config(3), "own"),
    (lambda: with_parameter(torch.zeros(2, dtype=torch.complex64)), config(), "own: complex64"),
    (lambda: with_parameter(torch.zeros(2, dtype=torch.float64)), config(0), "own: float64"),
    (lambda: with_parameter(torch.zeros(2, dtype=torch.bfloat16)), config(), "own is bfloat16, 0.weight is float32"),
    (lambda: nn.Sequential(nn.Embedding(3, 2, sparse=True)), config(), "sparse=False"),
    (lambda: nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), config(1), "0: max_norm"),
    (lambda: nn.Sequential(nn.EmbeddingBag(3, 2, max_norm=1.0)), config(0, "bf16"), "0: max_norm"),
    (lambda: Stateful(2, 2), config(), "_extra_state"),
]


@pytest.mark.parametrize(("make", "configuration", "named"), REFUSED)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_network_that_deepspeed_cannot_train_is_refused(
    make: Make, configuration: dict[str, Any], named: str, device: str
) -> None:
    with torch.device(device):
        module = make()
    with raises(PreflightError, "network_untrainable", named):
        check_trainable(module, configuration)


@pytest.mark.parametrize(
    ("make", "configuration"),
    [
        (lambda: with_parameter(torch.arange(3), trained=False), config(3)),
        (lambda: with_parameter(torch.zeros(3, dtype=torch.complex64), trained=False), config(2)),
        (lambda: with_parameter(torch.zeros(0, 4)), config(2)),
        (lambda: nn.Sequential(nn.Embedding(3, 2, padding_idx=0, max_norm=1.0)), config(0)),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), config(3)),
        (lambda: nn.Linear(2, 2).bfloat16(), config(1, "bf16")),
    ],
)
def test_other_networks_are_taken(make: Make, configuration: dict[str, Any]) -> None:
    check_trainable(make(), configuration)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
@pytest.mark.parametrize("module", [nn.utils, nn.utils.parametrizations])
def test_weights_that_are_computed_cannot_be_built_in_shards(module: Any, name: str) -> None:
    check_shardable(nn.Sequential(nn.Linear(2, 2)))
    if hasattr(module, name):
        with raises(PreflightError, "zero_3_unsupported", "0"):
            check_shardable(nn.Sequential(getattr(module, name)(nn.Linear(2, 2))))
