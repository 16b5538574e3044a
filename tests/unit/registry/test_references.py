"""References and aliases: refused when they are parsed if MLflow would refuse them later."""

from collections.abc import Callable
from pathlib import Path

import pytest

from maas_ray.batch.spec import PredictSpec
from maas_ray.errors import SpecError
from maas_ray.evaluation.spec import EvaluateSpec
from maas_ray.registry.references import check_alias, parse_reference
from maas_ray.registry.versions import Registry
from maas_ray.serve.spec import DeploySpec, GatewayArgs
from maas_ray.settings import Settings
from maas_ray.training.spec import TrainSpec
from tests.support import bundles
from tests.support.errors import raises

RESERVED = ["latest", "Latest", "LATEST", "v1", "V2", "v007"]
INVALID = ["prod-1.2", "a.b", "", " ", "a b", "-a", "_a", "ä", "a/b", "a:b", "a@b", "a\n", "x" * 129]
VALID = ["champion", "prod-1_2", "a", "9", "v", "v2x", "version-2", "latest-1", "x" * 128]


def _train(alias: str) -> object:
    return TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": "cnn"}, "alias": alias})


def _gateway(version: str) -> object:
    return GatewayArgs.parse({"models": [{"endpoint": "m", "version": version, "application": "a"}]})


DOORS: dict[str, Callable[[str], object]] = {
    "argument": check_alias,
    "train": _train,
    "reference": lambda alias: parse_reference(f"m@{alias}"),
    "deploy": lambda alias: DeploySpec.parse({"version": f"m@{alias}"}),
    "adapters": lambda alias: DeploySpec.parse({"version": "m/1", "adapters": {"a": f"m@{alias}"}}),
    "gateway": lambda alias: _gateway(f"m@{alias}"),
    "evaluate": lambda alias: EvaluateSpec.parse({"version": f"m@{alias}"}),
    "against": lambda alias: EvaluateSpec.parse({"version": "m/1", "against": f"m@{alias}"}),
    "predict": lambda alias: PredictSpec.parse({"version": f"m@{alias}", "input": "i", "output": "o"}),
}


@pytest.mark.parametrize("door", DOORS)
def test_an_alias_that_mlflow_refuses_is_refused_at_every_door(door: str) -> None:
    for alias in RESERVED:
        with raises(SpecError, "alias_reserved", alias):
            DOORS[door](alias)
    for alias in INVALID:
        with pytest.raises(SpecError) as caught:
            DOORS[door](alias)
        assert {"alias_invalid", "reference_invalid"} & set(caught.value.codes), alias
    for alias in VALID:
        DOORS[door](alias)


def test_mlflow_accepts_the_aliases_that_are_accepted_and_no_reserved_one(settings: Settings, tmp_path: Path) -> None:
    from mlflow.exceptions import MlflowException

    registry = Registry(settings)
    version = bundles.register(settings, "m", bundles.image_task(), tmp_path / "b", alias=None)
    for alias in VALID:
        registry.set_alias(version, alias)
    assert sorted(registry.resolve("m/1").aliases) == sorted(VALID)
    for alias in [*RESERVED, "prod-1.2", "a.b"]:
        with pytest.raises(MlflowException):
            registry.client.set_registered_model_alias("m", alias, "1")


@pytest.mark.parametrize("reference", ["m/²", "m/٣", "m/-1", "m/1.0", "m/", "m@", "@a", "/1", "", "a/b/1"])
def test_text_that_is_not_a_reference_is_refused(reference: str) -> None:
    with raises(SpecError, "reference_invalid", repr(reference)):
        parse_reference(reference)
