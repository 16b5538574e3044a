"""Advice for a loss that is not finite: the causes that the spec allows."""

import pytest

from maas_ray.training.spec import TrainSpec
from maas_ray.training.worker.advice import advice


@pytest.mark.parametrize(
    ("fields", "overflows", "unclipped"),
    [
        ({"precision": "fp32"}, "", False),
        ({"precision": "bf16", "gradient_clipping": 0}, "numbers overflow in bf16: try precision: fp32", True),
        ({"deepspeed": {"fp16": {"enabled": True}}}, "numbers overflow in fp16: try precision: fp32", False),
    ],
)
def test_the_causes_that_the_spec_allows_are_named(fields: dict[str, object], overflows: str, unclipped: bool):
    network = {"type": "cnn", "channels": [8], "hidden_size": 8}
    spec = TrainSpec.parse({"dataset": "digits", "model": "digits", "network": network, "learning_rate": 0.5} | fields)
    said = advice(spec, 0.25)
    assert "the learning rate is too high (now 0.25, peak 0.5)" in said
    assert ("numbers overflow" in said) == bool(overflows)
    assert overflows in said
    assert ("gradients are not clipped" in said) == unclipped
