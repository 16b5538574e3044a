"""`maas` in the test's process, without a cluster."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from maas_ray import cli
from maas_ray.settings import Settings
from tests.support.terminal import Run


@pytest.fixture
def maas(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `maas` in this process: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("MAAS_VERBOSE", "0")  # `--verbose` sets it

    def call(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["maas", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def registry_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A platform's home with two versions of a model, the first of them `champion`."""
    import numpy as np
    from safetensors.numpy import save_file

    from maas_ray.registry.bundle import BundleMeta, Lineage, publish_bundle
    from maas_ray.registry.versions import Registry

    home = tmp_path_factory.mktemp("registry")
    settings = Settings(home=str(home))
    registry = Registry(settings)
    for number in (1, 2):
        directory = tmp_path_factory.mktemp("bundle")
        save_file({"x": np.array([number])}, directory / "model.safetensors")
        lineage = Lineage(
            dataset="words",
            dataset_fingerprint="f" * 64,
            measured_rows={"validation": 60},
            run=f"run-{number}",
            code_revision="abc",
            spec={"model": "lm", "network": {"type": "llama", "layers": number}, "alias": None},
        )
        metrics = {"validation/perplexity": 10.0 / number, "validation/loss": 1.0, "test/perplexity": 11.0}
        meta = BundleMeta(name="lm", task="text-generation", metrics=metrics, lineage=lineage)
        registry.register(publish_bundle(settings, directory, meta))
    registry.set_alias(registry.resolve("lm/1"), "champion")
    return home


@pytest.fixture
def run(maas: Run, settings: Settings, registry_home: Path) -> Run:
    """`maas` on a copy of `registry_home`."""
    shutil.copytree(registry_home, settings.home)
    return maas
