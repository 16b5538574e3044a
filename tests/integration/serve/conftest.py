"""Endpoints for the tests of one file."""

from collections.abc import Iterator

import pytest

from maas_ray.settings import Settings
from tests.support.bundles import register
from tests.support.deployments import undeploy_all
from tests.support.served import IMAGES, TEXT, Served, put


@pytest.fixture(scope="module")
def served(cluster: str, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Endpoints `lm` and `img`."""
    directory = tmp_path_factory.mktemp("bundles")
    register(settings, "lm", TEXT, directory / "lm-1")
    register(settings, "img", IMAGES, directory / "img")
    endpoint = put(settings, "lm@champion")
    assert (endpoint.name, endpoint.version, endpoint.state, endpoint.replicas) == ("lm", "lm/1", "serving", 1)
    assert endpoint.engine == "openvino"
    assert put(settings, "img/1", max_batch_size=4).url == endpoint.url
    yield Served(endpoint.url, settings, directory / "lm-1")
    undeploy_all(settings)


@pytest.fixture
def openai_client(served: Served) -> Iterator:
    from openai import OpenAI

    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client
