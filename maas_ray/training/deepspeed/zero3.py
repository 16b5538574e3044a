"""A network built in shares for ZeRO 3, because it may be larger than one worker's memory."""

from typing import TYPE_CHECKING, Any

from maas_ray.tasks import NetworkSpec
from maas_ray.training.deepspeed.untrained import SHARE, share_of

if TYPE_CHECKING:
    import torch


def build_sharded(network: NetworkSpec, task: Any, config: dict[str, Any]) -> "torch.nn.Module":
    """`network.build(task)`, of which each worker keeps only its share. All workers call it together.

    The initial weights are rank 0's, so they do not depend on the number of workers.

    Args:
        network: the network's spec.
        task: the fitted task.
        config: DeepSpeed's configuration.
    """
    import deepspeed

    # Until this call DeepSpeed takes a worker for the only one.
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    if network.of_transformers:
        from transformers.integrations import HfDeepSpeedConfig

        # While this object lives, Transformers builds under `zero.Init` and gathers the parameters it initialises.
        held = HfDeepSpeedConfig(config)
        try:
            return network.build(task)
        finally:
            del held
    from deepspeed.runtime.zero import DeepSpeedTensorOverride
    from deepspeed.runtime.zero.partition_parameters import Init

    class Sharded(Init):  # type: ignore[misc]
        """`zero.Init` that casts parameters only.

        The original makes every new tensor in the training's precision, which changes random draws and buffers.
        """

        def _zero_init_param(self, param: Any) -> None:
            built = param.data
            if built.is_floating_point():
                param.data = built.to(self.dtype)
            super()._zero_init_param(param)
            if built.dtype != param.dtype:  # in case it turns out to be frozen
                setattr(param, SHARE, share_of(built, param.ds_tensor.numel(), self.get_partition_rank()))

    with Sharded(config_dict_or_path=config, tensor_overrides=[DeepSpeedTensorOverride.device]):
        return network.build(task)
