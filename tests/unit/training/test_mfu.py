"""MFU: what a GPU can do at most, by its name, and what a token costs."""

from types import SimpleNamespace

import pytest

from maas_ray.training.worker.mfu import flops_per_token, peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
        ("Tesla T4", 65e12),
        ("Some other card", None),
    ],
)
def test_peaks_by_the_name_that_cuda_gives(name: str, peak: float | None):
    assert peak_flops(name) == peak


def test_a_token_costs_six_operations_a_parameter_and_its_attention():
    # PaLM's own example of the formula: 6N + 12LHQT.
    config = SimpleNamespace(num_hidden_layers=2, hidden_size=64)
    assert flops_per_token(1000, config, 256) == 6 * 1000 + 12 * 2 * 64 * 256
    assert flops_per_token(1000, None, 256) == 6000
