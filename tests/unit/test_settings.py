from pathlib import Path

import pytest

from maas_ray.errors import SpecError
from maas_ray.settings import Settings
from tests.support.errors import raises


def test_everything_has_a_default_under_home() -> None:
    settings = Settings.from_environment({"MAAS_HOME": "/srv/maas"})

    assert settings.storage == "/srv/maas/storage"
    assert settings.mlflow == "sqlite:////srv/maas/mlflow.db"
    assert settings.database == "sqlite:////srv/maas/maas.db"
    assert (settings.http_host, settings.http_port, settings.grpc_port) == ("127.0.0.1", 8000, 8001)
    assert not settings.verbose


def test_home_is_absolute_whatever_was_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    assert Settings.from_environment({}).home == f"{tmp_path}/.maas"
    assert Settings.from_environment({"MAAS_HOME": "~/x"}).home == f"{tmp_path}/x"
    assert Settings.from_environment({"MAAS_HOME": "x"}).storage == f"{tmp_path}/x/storage"


@pytest.mark.parametrize(
    "storage", ["sftp://ann:hunter2@host/maas", "https://host/maas?sig=hunter2", "s3://K:hunter2@b/x"]
)
def test_storage_must_not_contain_secrets(storage: str) -> None:
    """URIs below it are recorded, and workers' environments, which the dashboard shows, contain it."""
    with raises(SpecError, "plain_password", "FSSPEC_SFTP_PASSWORD") as caught:
        Settings.from_environment({"MAAS_STORAGE": storage})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "absolute"),
    [
        ("database", "sqlite:///maas.db", "sqlite:///{}/maas.db"),
        ("database", "sqlite+pysqlite:///../maas.db?timeout=5", "sqlite+pysqlite:///{parent}/maas.db?timeout=5"),
        ("database", "sqlite:////srv/maas.db", "sqlite:////srv/maas.db"),
        ("database", "sqlite:///:memory:", "sqlite:///:memory:"),
        ("database", "postgresql://db/maas", "postgresql://db/maas"),
        ("mlflow", "sqlite:///mlflow.db", "sqlite:///{}/mlflow.db"),
        ("mlflow", "databricks", "databricks"),
        ("storage", "data", "{}/data"),
        ("storage", "~/data", "{}/home/data"),
        ("storage", "s3://bucket/maas", "s3://bucket/maas"),
        ("shared", "shared.yaml", "{}/shared.yaml"),
        ("shared", "{max_models: 4}", None),
        ("shared", "", ""),
    ],
)
def test_local_paths_are_absolute_so_that_they_mean_the_same_in_every_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, absolute: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment({f"MAAS_{name.upper()}": value})

    assert getattr(settings, name) == (value if absolute is None else absolute.format(tmp_path, parent=tmp_path.parent))
    monkeypatch.chdir("/")
    assert Settings.from_environment(settings.environment()) == settings


def test_variables_are_read_and_handed_on() -> None:
    variables = {
        "MAAS_STORAGE": "s3://bucket/maas",
        "MAAS_MLFLOW": "http://mlflow:5000",
        "MAAS_DATABASE": "postgresql://db/maas",
        "MAAS_HTTP_PORT": "9000",
        "MAAS_VERBOSE": "1",
    }

    settings = Settings.from_environment(variables | {"HOME": "/root", "OTHER": "1"})

    assert (settings.storage, settings.http_port, settings.verbose) == ("s3://bucket/maas", 9000, True)
    assert Settings.from_environment(settings.environment()) == settings


def test_an_unknown_variable_is_named_as_it_was_written() -> None:
    with raises(SpecError, "unknown_setting", "environment", "MAAS_STORGE", "MAAS_STORAGE?") as caught:
        Settings.from_environment({"MAAS_STORGE": "s3://bucket", "MAAS_HTTP_PORT": "http"})

    assert caught.value.codes == ["unknown_setting", "int_parsing"]
    assert caught.value.problems[1].startswith("MAAS_HTTP_PORT: ")
    assert "'http'" in caught.value.problems[1]


def test_an_unknown_variable_without_a_close_match_lists_the_settings() -> None:
    with raises(SpecError, "unknown_setting", "MAAS_XYZZY", "MAAS_HOME, MAAS_STORAGE"):
        Settings.from_environment({"MAAS_XYZZY": "1"})


@pytest.mark.parametrize("port", ["0", "65536", "-1", "80.5"])
def test_a_port_out_of_range_is_refused(port: str) -> None:
    code = "int_parsing" if "." in port else "less_than_equal" if port == "65536" else "greater_than_equal"
    with raises(SpecError, code, "MAAS_HTTP_PORT", port):
        Settings.from_environment({"MAAS_HTTP_PORT": port})


@pytest.mark.parametrize(
    "injected",
    [
        {"MAAS_GATEWAY_SERVICE_HOST": "10.0.0.1", "MAAS_GATEWAY_SERVICE_PORT": "8000"},
        {"MAAS_GATEWAY_SERVICE_PORT_HTTP": "8000", "MAAS_GATEWAY_PORT": "tcp://10.0.0.1:8000"},
        {"MAAS_GATEWAY_PORT_8000_TCP": "tcp://10.0.0.1:8000", "MAAS_GATEWAY_PORT_8000_TCP_PROTO": "tcp"},
        {"MAAS_PORT_53_UDP_PORT": "53", "MAAS_PORT_53_UDP_ADDR": "10.0.0.1", "MAAS_SERVICE_HOST": "10.0.0.1"},
        {"MAAS_HTTP_PORT": "tcp://10.0.0.1:80", "MAAS_GRPC_PORT": "tcp://10.0.0.2:80"},  # services maas-http, maas-grpc
    ],
)
def test_variables_of_a_kubernetes_service_are_ignored(injected: dict[str, str]) -> None:
    assert Settings.from_environment({"MAAS_HOME": "/srv"} | injected) == Settings.from_environment(
        {"MAAS_HOME": "/srv"}
    )


@pytest.mark.parametrize("name", ["MAAS_HTP_PORT", "MAAS_SERVICE_HOSTS", "MAAS_PORT_TCP", "MAAS_X"])
def test_misspellings_that_resemble_them_are_refused_but_stop_no_worker(name: str) -> None:
    with raises(SpecError, "unknown_setting", name):
        Settings.from_environment({name: "9000"})
    assert Settings.from_environment({name: "9000", "MAAS_HOME": "/srv"}, strict=False).home == "/srv"
