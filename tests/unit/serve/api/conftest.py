"""The gateway's application without a server or a cluster."""

from functools import partial

import pytest

from maas_ray.serve.api.app import create_app
from tests.support.echo import LIMIT, Call, EchoAndSums
from tests.support.models import send


@pytest.fixture
def call() -> Call:
    return partial(send, create_app(EchoAndSums(), body_limit=LIMIT))
