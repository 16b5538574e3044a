"""A dry run checks what a deployment checks, and says what it would do, without a cluster."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maas_ray.errors import DeploymentError, NotFoundError, SpecError
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.serve.deployment import desired, verbs
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.dry_run import dry_run
from maas_ray.serve.deployment.endpoints import Endpoints, State
from maas_ray.serve.spec import GATEWAY_APP, DeploySpec
from maas_ray.settings import Settings
from tests.support.bundles import image_task, register
from tests.support.errors import raises
from tests.unit.serve.deployment.test_drift import application, gateway

SPEC = DeploySpec.parse({"version": "img@champion", "resources": {"cpus": 0.5}})


@pytest.fixture
def version(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelVersion:
    monkeypatch.setattr(control, "connected", lambda _: False)
    return register(settings, "img", image_task(), tmp_path / "bundle", seed=1, alias="champion")


def runs(monkeypatch: pytest.MonkeyPatch, **running: dict[str, Any]) -> None:
    monkeypatch.setattr(control, "connected", lambda _: True)
    monkeypatch.setattr(control, "applications", lambda: {name.replace("_", "-"): one for name, one in running.items()})


def test_a_new_endpoint_would_be_started(settings: Settings, version: ModelVersion) -> None:
    database = Path(settings.database.removeprefix("sqlite:///"))
    database.unlink()  # registering the version created it
    first, *changes, last = dry_run(SPEC, settings=settings)
    assert first == "endpoint img: img/1, image-classification"
    assert changes == ["  it does not exist yet"]
    assert "would start a cluster" in last
    assert "1 to 4 replicas, each with 0.5 CPUs" in last
    assert not database.exists()


def test_an_unchanged_endpoint_would_be_left_alone(
    settings: Settings, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints = Endpoints(settings)
    record = endpoints.put(desired.wanted(SPEC, version, Registry(settings), endpoints.platform))
    running = {record.application: application(), GATEWAY_APP: gateway(record.route, platform=endpoints.platform)}
    runs(monkeypatch, **running)
    assert dry_run(SPEC, settings=settings)[1:] == ["would change nothing"]
    changed = SPEC.model_copy(update={"request_timeout_s": 7.0})
    *changes, last = dry_run(changed, settings=settings)[1:]
    assert changes == ["  request_timeout_s: 300.0 → 7.0"]
    assert "its replicas stay" in last
    *changes, last = dry_run(SPEC.model_copy(update={"max_batch_size": 3}), settings=settings)[1:]
    assert changes == ["  max_batch_size: 16 → 3"]
    assert last.startswith("would start the application model-img-")


def test_an_endpoint_that_runs_other_code_is_named(
    settings: Settings, version: ModelVersion, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoints = Endpoints(settings)
    platform = endpoints.platform
    record = endpoints.put(desired.wanted(SPEC, version, Registry(settings), platform))
    assert not desired.is_outdated(record, platform)
    monkeypatch.setattr(desired, "code_version", lambda: "other")
    assert desired.is_outdated(record, platform)
    assert not desired.is_outdated(replace(record, spec=record.spec | {"replicas": "shared"}), platform)
    assert not desired.is_outdated(replace(record, state=State.DEPLOYING), platform)
    assert desired.is_outdated(replace(record, spec={"version": "img/1", "unknown": 1}), platform)
    verbs._name_outdated([])
    assert capsys.readouterr().out == ""
    verbs._name_outdated(["img"])
    assert capsys.readouterr().out.startswith("img: ")


def test_errors_are_those_of_a_deployment(
    settings: Settings, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError):
        dry_run(DeploySpec.parse({"version": "img/9"}), settings=settings)
    with raises(DeploymentError, "engine_unfit", "openvino"):
        dry_run(DeploySpec.parse({"version": "img/1", "engine": "openvino"}), settings=settings)
    with pytest.raises(SpecError):
        dry_run(SPEC, settings=settings.model_copy(update={"shared": "/nowhere.yaml"}))
    runs(monkeypatch, maas_gateway=application(source="declarative"))
    with raises(DeploymentError, "gateway_from_config_file"):
        dry_run(SPEC, settings=settings)
