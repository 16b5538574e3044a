"""Building a network of which each worker keeps only its share, for ZeRO 3: it may be larger than a worker's memory."""

from typing import TYPE_CHECKING, Any

from maas_ray.tasks import NetworkSpec

if TYPE_CHECKING:
    import torch


def build_sharded(network: NetworkSpec, task: Any, config: dict[str, Any]) -> "torch.nn.Module":
    """`network.build(task)`, in shares. All workers call it together.

    The initial weights are rank 0's, so they do not depend on how many workers there are.

    Args:
        network: what to build.
        task: the fitted task.
        config: DeepSpeed's configuration.
    """
    import deepspeed

    # Until this call DeepSpeed takes a worker for the only one.
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    if network.of_transformers:
        from transformers.integrations import HfDeepSpeedConfig

        # While it lives, Transformers itself builds under `zero.Init`, and gathers what it initialises.
        held = HfDeepSpeedConfig(config)
        try:
            return network.build(task)
        finally:
            del held
    from deepspeed.runtime.zero import DeepSpeedTensorOverride
    from deepspeed.runtime.zero.partition_parameters import Init

    class Sharded(Init):  # type: ignore[misc]
        """Left alone, it makes every tensor in the training's precision: draws of other values, and buffers too."""

        def _zero_init_param(self, param: Any) -> None:
            param.data = param.data.to(self.dtype)
            super()._zero_init_param(param)

    with Sharded(config_dict_or_path=config, tensor_overrides=[DeepSpeedTensorOverride.device]):
        return network.build(task)
