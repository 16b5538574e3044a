"""Endpoints on shared replicas: their specs, and the ids that replicas load models by."""

import pytest

from maas_ray.errors import SpecError
from maas_ray.registry.versions import ModelVersion
from maas_ray.serve.resolve import make_route, resolve_route, share
from maas_ray.serve.routes import from_config, to_config
from maas_ray.serve.spec import DeploySpec, ServedModel, SharedArgs, SharedModel
from maas_ray.settings import Settings
from tests.support.bundles import image_task, register
from tests.support.errors import raises


@pytest.mark.parametrize("field", [{"scaling": {"max_replicas": 2}}, {"resources": {"cpus": 2}}])
def test_a_shared_endpoint_refuses_options_of_its_own_replicas(field: dict) -> None:
    spec = {"version": "a/1", "replicas": "shared"}
    with raises(SpecError, "option_of_shared_replicas", f"{next(iter(field))}:"):
        DeploySpec.parse(spec | field)
    # As a record has it: every field, most as by default.
    assert DeploySpec.parse(DeploySpec.parse(spec).document()).replicas == "shared"
    assert DeploySpec.parse({"version": "a/1"} | field).replicas == "own"


def version(settings: Settings, tmp_path, seed: int = 0) -> ModelVersion:
    return register(settings, "img", image_task(), tmp_path / f"{seed}", seed=seed)


def test_a_shared_model_s_id_contains_all_that_a_replica_needs(tmp_path) -> None:
    settings = Settings.from_environment({"MAAS_HOME": str(tmp_path / "home")})
    first, second = version(settings, tmp_path, 1), version(settings, tmp_path, 2)

    def route(of: ModelVersion, **options):
        spec = DeploySpec.parse({"version": "img/1", "replicas": "shared", **options})
        made = make_route(of, endpoint="x", application="maas-shared", timeout_s=spec.request_timeout_s)
        return share(made, of, spec)

    plain = route(first, max_batch_size=4)
    model = SharedModel.model_validate_json(plain.target.shared)
    assert (model.uri, model.digest, model.name, model.number) == (first.uri, first.digest, "x", "1")
    assert (model.kind, model.options.max_batch_size) == ("predict", 4)
    assert model.weights == (tmp_path / "1" / "model.safetensors").stat().st_size
    assert model.id == plain.target.shared
    served = ServedModel.parse({"endpoint": "x", "version": "img/1", "application": "mine", "replicas": "shared"})
    listed = resolve_route(served, settings)  # as a gateway's config file has it
    assert (listed.target.application, listed.target.shared) == ("mine", route(first).target.shared)
    assert from_config(to_config((plain,))) == (plain,)
    # Another model: other weights, other options. The same one: what is the gateway's to keep.
    assert route(second, max_batch_size=4).target.shared != plain.target.shared
    assert route(first).target.shared != plain.target.shared
    assert route(first, max_batch_size=4, request_timeout_s=7, startup_timeout_s=9).target.shared == plain.target.shared


def test_the_file_of_shared_replicas_is_a_spec(tmp_path) -> None:
    file = tmp_path / "shared.yaml"
    file.write_text("max_models: 3\nweights_gb: 0.5\n")
    assert SharedArgs.from_yaml(file).max_models == 3
    file.write_text("max_modles: 3\n")
    with raises(SpecError, "extra_forbidden", "line 1", "did you mean `max_models`"):
        SharedArgs.from_yaml(file)
