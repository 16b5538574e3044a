"""Advice for a loss or a gradient that is not finite."""

from maas_ray.training.deepspeed.defaults import precision
from maas_ray.training.hyperparameters import Hyperparameters


def advice(spec: Hyperparameters, learning_rate: float) -> str:
    """Likely causes, given the configuration and the learning rate of the last step."""
    causes = [
        f"the learning rate is too high (now {learning_rate:.2g}, peak {spec.learning_rate:.2g}): try a tenth of it",
        f"warm-up is too short (warmup_steps: {spec.warmup_steps})",
    ]
    if not spec.gradient_clipping:
        causes.append("gradients are not clipped (gradient_clipping: 0): try 1.0")
    if precision(spec) != "fp32":
        causes.append(f"numbers overflow in {precision(spec)}: try precision: fp32")
    causes.append("the data holds values that are not finite")
    return "Likely causes, the commonest first:\n" + "\n".join(f"  - {cause}" for cause in causes)
