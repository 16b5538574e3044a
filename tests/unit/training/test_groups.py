"""The optimizer's groups: weight decay spares biases, normalisation and embeddings."""

from typing import Any

import pytest
import torch
from torch import nn

from maas_ray.tasks.text.networks import Llama
from maas_ray.training.deepspeed.groups import optimizer_groups
from tests.support.bundles import text_task
from tests.support.weighing import Weighing


class Plain(Weighing):
    def parameters(self, network: Any) -> Any:
        return network.parameters()


def names(module: nn.Module, group: dict[str, Any]) -> set[str]:
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    return {known[id(parameter)] for parameter in group["params"]}


def transformers_model(kind: str) -> nn.Module:
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    auto = {"bert": "AutoModelForSequenceClassification", "vit": "AutoModelForImageClassification"}[kind]
    config = transformers.AutoConfig.for_model(kind, **small, **({"image_size": 32} if kind == "vit" else {}))
    return getattr(transformers, auto).from_config(config)


@pytest.mark.parametrize("kind", ["bert", "vit", "llama"])
def test_what_decays_is_what_decays_in_hugging_faces_trainer_without_embeddings(kind: str) -> None:
    from transformers.trainer_pt_utils import get_parameter_names

    module = (
        Llama(hidden_size=32, layers=2, heads=2).build(text_task()) if kind == "llama" else transformers_model(kind)
    )
    decayed, spared = optimizer_groups(Plain(), module, spare=True)
    # The arguments are those of `Trainer.get_decay_parameter_names`.
    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    theirs = set(get_parameter_names(module, [nn.LayerNorm], patterns))
    embeddings = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Embedding)}
    assert names(module, decayed) == {name for name, _ in module.named_parameters()} & theirs - embeddings
    assert names(module, spared) == {name for name, _ in module.named_parameters()} - names(module, decayed)
    assert (spared["weight_decay"], "weight_decay" in decayed) == (0.0, False)
    assert bool(embeddings) == (kind != "vit"), "a ViT embeds by a convolution"


def test_groups_of_a_tasks_own_stay_and_frozen_parameters_are_in_none() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    module[0].requires_grad_(False)

    class Own(Weighing):
        def parameters(self, network: Any) -> Any:
            return [*network[:2].parameters(), {"params": network[2].parameters(), "lr": 1.0}]

    own, spared = optimizer_groups(Own(), module, spare=True)
    assert (names(module, own), own["lr"]) == ({"2.weight", "2.bias"}, 1.0)
    assert names(module, spared) == {"1.weight", "1.bias"}, "no group is empty"
    as_before = optimizer_groups(Plain(), module, spare=False)
    assert [list(map(id, group["params"])) for group in as_before] == [list(map(id, module.parameters()))]


def test_a_table_that_is_tied_to_a_layer_is_an_embedding() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 9, bias=False)
            self.table = nn.Embedding(9, 4)
            self.head.weight = self.table.weight

    module = Tied()
    (spared,) = optimizer_groups(Plain(), module, spare=True)
    assert names(module, spared) == {"head.weight"}
    assert spared["weight_decay"] == 0.0


def test_vectors_are_told_from_matrices_by_their_whole_shape() -> None:
    """ZeRO 3 holds a parameter as an empty vector and its shape beside it."""
    module = nn.Linear(3, 2)
    for parameter, shape in ((module.weight, (2, 3)), (module.bias, (2,))):
        parameter.ds_shape, parameter.data = torch.Size(shape), torch.empty(0)  # type: ignore[attr-defined]
    decayed, spared = optimizer_groups(Plain(), module, spare=True)
    assert (names(module, decayed), names(module, spared)) == ({"weight"}, {"bias"})
