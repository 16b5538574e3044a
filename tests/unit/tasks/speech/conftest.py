"""A fitted task."""

import pytest

from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognition
from tests.support.recognition import rows_of, spec_of


@pytest.fixture(scope="module")
def task() -> AutomaticSpeechRecognition:
    spec = spec_of(language="en")
    return spec.fit(rows_of(spec))
