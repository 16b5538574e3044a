"""Engines of each kind with one small model, which is converted once."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maas_ray.serve.engines import Engine
from maas_ray.serve.engines.openvino.conversion import Converted
from maas_ray.serve.engines.openvino.engine import OpenVinoEngine
from tests.support.bundles import save_bundle
from tests.support.engines import DIGEST, PAGE_BYTES, TASK, Make
from tests.support.openvino import convert


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(TASK, tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="session")
def model(directory: Path, cache: Path) -> Converted:
    return convert(directory, DIGEST, cache)


@pytest.fixture(scope="module", params=["openvino", "transformers"])
def make(request: pytest.FixtureRequest, directory: Path) -> Iterator[Make]:
    """Starts an engine of each kind; all are closed in the end."""
    started: list[Engine] = []

    def make(**changes: Any) -> Engine:
        options = {"context": 128, "max_requests": 8, "kv_cache_bytes": 10**9, "prefill_tokens": 64} | changes
        if request.param == "openvino":
            model = replace(request.getfixturevalue("model"), context=options.pop("context"))
            started.append(OpenVinoEngine(model, threads=1, **options))
        else:
            from maas_ray.serve.engines.transformers import TransformersEngine, quiet

            quiet()
            started.append(TransformersEngine(TASK.load_model(directory), **options))
        return started[-1]

    yield make
    for engine in started:
        engine.close()


@pytest.fixture(scope="module")
def engine(make: Make) -> Engine:
    return make()


@pytest.fixture(scope="module")
def cramped(make: Make) -> Engine:
    """An engine that must evict some of a few long sequences."""
    return make(kv_cache_bytes=5 * PAGE_BYTES)
