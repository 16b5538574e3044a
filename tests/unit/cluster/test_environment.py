"""Workers and replicas get what they need: no addresses with passwords, and nothing that differs between deployers."""

import subprocess
import sys
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import requests

from maas_ray import cluster
from maas_ray.cluster.code import QUESTION, compare, node_question
from maas_ray.cluster.environment import without_proxy
from maas_ray.errors import ClusterError
from maas_ray.settings import Settings
from maas_ray.version import __version__, compute_code_version
from tests.support.errors import raises

GIVEN = {
    "MAAS_DATABASE": "postgresql://maas:hunter2@db/maas",
    "MAAS_MLFLOW": "postgresql://maas:hunter2@db/mlflow",
    "MAAS_STORAGE": "s3://bucket/maas",
    "MAAS_TRUST_REMOTE_CODE": "1",
    "MAAS_VERBOSE": "1",
}


def job(monkeypatch: pytest.MonkeyPatch, **runtime_env: Any) -> None:
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(runtime_env=runtime_env))


def test_workers_get_no_addresses() -> None:
    variables = cluster.worker_environment(Settings.from_environment(GIVEN))
    assert "hunter2" not in str(variables)
    assert (variables["MAAS_STORAGE"], variables["MAAS_TRUST_REMOTE_CODE"]) == ("s3://bucket/maas", "True")


def test_replicas_get_the_same_from_every_deployer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAAS_TRUST_REMOTE_CODE", raising=False)
    job(monkeypatch, env_vars=GIVEN | {"AWS_SECRET_ACCESS_KEY": "x"}, working_dir="gcs://_ray_pkg_1.zip")
    from_job = cluster.replica_runtime_env(user_code=True)
    assert from_job["env_vars"] == {"MAAS_DATABASE": "", "MAAS_MLFLOW": "", "MAAS_TRUST_REMOTE_CODE": "True"}
    job(monkeypatch, env_vars={"MAAS_TRUST_REMOTE_CODE": "True", "MAAS_HOME": "/home/bob"})
    assert cluster.replica_runtime_env(user_code=True) == from_job
    job(monkeypatch)
    assert cluster.replica_runtime_env(user_code=True)["env_vars"]["MAAS_TRUST_REMOTE_CODE"] == "False"
    # Serve sets a deployer's working directory if the key is missing.
    assert cluster.replica_runtime_env(user_code=False) == {
        "env_vars": {"MAAS_DATABASE": "", "MAAS_MLFLOW": "", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"},
        "working_dir": None,
    }


def test_a_replica_with_empty_addresses_has_the_defaults() -> None:
    settings = Settings.from_environment({"MAAS_HOME": "/srv", "MAAS_DATABASE": "", "MAAS_MLFLOW": ""})
    assert settings == Settings.from_environment({"MAAS_HOME": "/srv"})


def test_a_node_says_which_code_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    here = f"{__version__} {compute_code_version()}"
    assert node_question()(QUESTION) == here
    # A job's directory may contain another maas_ray, which its tasks import and replicas do not.
    package = tmp_path / "working_dir_files" / "_ray_pkg_1" / "maas_ray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=":")
    assert node_question()(QUESTION) == here


@pytest.mark.parametrize("installed", ["", "0.1.0 0123456789ab", f"{__version__} 0123456789ab"])
def test_other_code_on_the_cluster_is_refused(installed: str) -> None:
    here = f"{__version__} {compute_code_version()}"
    compare(here, here)
    with raises(ClusterError, "cluster_of_other_code", installed, here):
        compare(installed, here)


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize("given", [{}, {"NO_PROXY": "corp.example, 10.0.0.0/8"}, {"no_proxy": "*"}])
def test_the_cluster_is_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, proxy: str, given: dict[str, str]
) -> None:
    addresses = ["10.1.2.3:6379", "http://head.internal:8265", "[fd00::1]:6379", "ray://gate:10001", ""]
    environment = {proxy: "http://127.0.0.1:9", **given}
    added = without_proxy(addresses, environment)
    assert added["no_proxy"] == added["NO_PROXY"]
    for name, value in (environment | added).items():
        monkeypatch.setenv(name, value)
    # The rules of the clients that are used, urllib and requests.
    for host in ("127.0.0.1", "localhost", "10.1.2.3", "head.internal", "gate"):
        assert urllib.request.proxy_bypass_environment(host)
        assert requests.utils.should_bypass_proxies(f"http://{host}:8265/api", None)
    assert bool(urllib.request.proxy_bypass_environment("huggingface.co")) == ("no_proxy" in given)
    if "NO_PROXY" in given:
        assert added["no_proxy"].startswith("corp.example,10.0.0.0/8,")


def test_without_a_proxy_nothing_is_set() -> None:
    assert without_proxy(["10.1.2.3:6379"], {"NO_PROXY": "x", "http_proxy": ""}) == {}


def test_verbs_import_ray_only_when_the_cluster_is_known() -> None:
    # Ray reads RAY_AUTH_MODE when it is imported, and the cluster's is set after that is found.
    code = "import sys, maas_ray.serve.deployment.verbs, maas_ray.batch.run; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
