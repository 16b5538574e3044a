"""`serve_configs/`: the same applications through Serve's own tools."""

import time
from pathlib import Path

import httpx
import pytest
import yaml

from maas_ray import DeploySpec, deploy
from maas_ray.errors import DeploymentError
from maas_ray.settings import Settings
from tests.support import ROOT
from tests.support.bundles import register, text_task
from tests.support.errors import raises

QUICKSTART = ROOT / "serve_configs" / "quickstart.yaml"


@pytest.mark.usefixtures("cluster")  # Ray must not be imported before it
def test_it_is_valid_and_says_what_the_job_s_spec_says() -> None:
    from ray.serve.schema import ServeDeploySchema

    from maas_ray.serve.spec import GatewayArgs, ModelArgs

    schema = ServeDeploySchema.model_validate(yaml.safe_load(QUICKSTART.read_text()))
    model, gateway = schema.applications
    args = ModelArgs.parse(model.args)
    (route,) = GatewayArgs.parse(gateway.args).models
    assert (route.endpoint, route.version, route.application) == (args.endpoint, args.version, model.name)
    assert (model.route_prefix, gateway.route_prefix) == (None, "/")
    spec = DeploySpec.from_yaml(ROOT / "jobs" / "specs" / "quickstart-deploy.yaml")
    assert (spec.endpoint, spec.version) == (args.endpoint, args.version)


@pytest.mark.usefixtures("cluster")
def test_it_brings_up_the_same(settings: Settings, tmp_path: Path) -> None:
    """The work of `serve deploy`, without the dashboard that it sends the file to."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    register(settings, "stdlib-lm", text_task(), tmp_path)
    schema = ServeDeploySchema.model_validate(yaml.safe_load(QUICKSTART.read_text()))
    serve.start(http_options={"host": settings.http_host, "port": settings.http_port})
    try:
        _get_global_client().deploy_apps(schema)
        deadline = time.monotonic() + 120
        while {app.status for app in serve.status().applications.values()} != {"RUNNING"}:
            assert time.monotonic() < deadline, serve.status()
            time.sleep(0.3)
        # A gateway that a file describes is not overwritten by `maas deploy`.
        with raises(DeploymentError, "gateway_from_config_file"):
            deploy(DeploySpec.parse({"version": "stdlib-lm@champion"}), settings=settings)
        body = {"model": "stdlib-lm", "prompt": "def ", "max_tokens": 3}
        while True:
            response = httpx.post(f"http://127.0.0.1:{settings.http_port}/v1/completions", json=body, timeout=30)
            if response.status_code == 200:
                break
            assert time.monotonic() < deadline, response.text
            time.sleep(0.3)
        assert response.json()["usage"]["completion_tokens"] == 3
    finally:
        serve.shutdown()
