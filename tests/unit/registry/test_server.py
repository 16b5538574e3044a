"""MLflow as a server: bundles on a path are registered, and a refusal comes before the training."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.serving import make_server

from maas_ray.errors import ConflictError, StorageError
from maas_ray.registry.bundle import bundle_home
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from tests.support import bundles
from tests.support.errors import raises


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with MLflow's own server, over a database of its own."""
    from flask import Flask
    from mlflow.server import handlers

    store = f"sqlite:///{tmp_path}/server.db"
    Registry(Settings(home=str(tmp_path), mlflow=store)).client.search_registered_models()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(handlers, "_tracking_store", None)
    monkeypatch.setattr(handlers, "_model_registry_store", None)
    handlers.initialize_backend_stores(store, store, str(tmp_path / "artifacts"))
    app = Flask("mlflow")
    for path, handler, methods in handlers.get_endpoints():
        app.add_url_rule(path, f"{handler.__name__}-{path}", handler, methods=methods)
    running = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield Settings(home=str(tmp_path), mlflow=f"http://127.0.0.1:{running.server_port}")
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_bundle_on_a_path_is_registered_with_a_server(server: Settings, tmp_path: Path) -> None:
    registry, task = Registry(server), bundles.image_task()
    registry.prove("m", bundle_home(server, "m"))
    assert registry.client.search_registered_models() == [], "the trial leaves nothing"
    bundle = bundles.publish(server, "m", task, tmp_path / "b")
    version = registry.register(bundle)
    assert (version.reference, version.uri) == ("m/1", bundle.uri)
    assert version.open().digest == bundle.digest
    assert registry.register(bundle) == version
    registry.set_alias(version, "prod-1_2")
    assert registry.resolve("m@prod-1_2").number == 1


def test_a_server_that_refuses_versions_is_found_out_before_training(
    server: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX", "^s3://models/")
    registry = Registry(server)
    with raises(ConflictError, "registration_refused", server.mlflow):
        registry.prove("m", bundle_home(server, "m"))
    assert registry.client.search_registered_models() == []


def test_a_server_that_is_away_has_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = Registry(Settings(mlflow="http://127.0.0.1:9"))
    with raises(StorageError, "mlflow_unavailable", "http://127.0.0.1:9"):
        registry.models()
