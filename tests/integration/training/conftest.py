"""Datasets that all tests of training share."""

import pytest

from maas_ray.data.dataset import PreparedDataset
from maas_ray.settings import Settings
from tests.support.datasets import digits_dataset, text_dataset


@pytest.fixture(scope="session")
def text(settings: Settings) -> PreparedDataset:
    """Sequences of source code for text generation."""
    return text_dataset(settings, "code")


@pytest.fixture(scope="session")
def digits(settings: Settings) -> PreparedDataset:
    """Scanned digits for image classification."""
    return digits_dataset(settings, "digits")
