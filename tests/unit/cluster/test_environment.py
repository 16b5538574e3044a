"""Workers and replicas get what they need: no addresses with passwords, and nothing that differs between deployers."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from maas_ray import cluster
from maas_ray.cluster.code import QUESTION, compare, node_question
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
        "env_vars": {"MAAS_DATABASE": "", "MAAS_MLFLOW": ""},
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
