"""The same cluster as the integration tests'; every test here skips itself where there is no GPU."""

import pytest

from tests.integration.conftest import cluster, settings

__all__ = ["cluster", "settings"]


@pytest.fixture(autouse=True)
def gpus() -> int:
    """How many GPUs there are."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        pytest.skip("needs a GPU")
    return count
