"""Parameters that a run does not train: frozen ones, and those that the task leaves out of the optimizer.

They are exported with the values that they were built with. In 16 bits the engine rounds them, so their exact values
are kept beside it and saved in each checkpoint. Weights that were published in the training's own precision need no
such copy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from maas_ray.errors import PreflightError
from maas_ray.training.deepspeed.groups import Groups, numel, trained_names

if TYPE_CHECKING:
    import torch

SHARE = "_maas_exact_share"
"""Attribute of a parameter under ZeRO 3: this rank's share of the values it was built with."""


@dataclass
class Untrained:
    """The parameters that are not trained.

    Args:
        trained: names of the trained ones, in the order of the optimizer.
        values: exact values on the CPU, by name, of those that the engine's precision rounds. ZeRO 3: of each, this
            rank's share. Otherwise only rank 0, which saves them, has any.
        built: values while the engine is built, by name.
        shared: further names of parameters and buffers, with the first name of each.
    """

    trained: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    built: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, module: "torch.nn.Module", groups: Groups) -> "Untrained":
        """The untrained parameters of a network that is built and not yet in an engine.

        A parameter that is in no group of the optimizer is frozen: its gradient would have no effect.

        Args:
            module: the network.
            groups: the optimizer's.

        Raises:
            PreflightError: there is nothing to train.
        """
        trained = trained_names(module, groups)
        if not trained:
            raise PreflightError(
                f"{type(module).__name__} has no parameter to train: each is frozen, or not in `Task.parameters`. "
                "Leave at least one with requires_grad.",
                code="nothing_to_train",
            )
        optimized = {id(parameter) for group in groups for parameter in group["params"]}
        for parameter in module.parameters():
            if id(parameter) not in optimized:
                parameter.requires_grad_(False)
        # These keep the built tensors, of which the engine makes rounded copies; nothing is copied here.
        built = {name: getattr(p, SHARE, p.data) for name, p in _untrained(module)}
        for parameter in module.parameters():
            parameter.__dict__.pop(SHARE, None)
        return cls(trained, built=built, shared=_shared(module))

    def keep(self, engine: Any, rank: int) -> None:
        """Keep the values that the engine has rounded, and release the others."""
        import torch

        for name, parameter in _untrained(engine.module):
            sharded, value = hasattr(parameter, "ds_id"), self.built.get(name)
            if value is None or not value.numel() or (rank and not sharded):
                continue
            held = _held(parameter, value)
            rounded = value.to(held)
            # Under ZeRO 3 a share counts if it is what rank 0 has sent to all.
            if torch.equal(rounded, held) and not torch.equal(rounded.to(value), value):
                self.values[name] = value.to("cpu")
        self.built = {}

    def restore(self, engine: Any, rank: int, state: Mapping[str, Any]) -> None:
        """Put the untrained parameters and the buffers of a checkpoint into the engine.

        DeepSpeed does so too, except from its universal format, which has neither.

        Args:
            engine: DeepSpeed's.
            rank: this worker's.
            state: as `consolidated` gives it.
        """
        import torch

        with torch.no_grad():
            for name, parameter in _untrained(engine.module):
                if name not in state:
                    continue
                value = state[name].contiguous()
                if sharded := hasattr(parameter, "ds_id"):
                    number = torch.distributed.get_rank(parameter.ds_process_group)
                    value = share_of(value, parameter.ds_tensor.numel(), number)
                held = _held(parameter, value)
                before = self.values.pop(name, None)
                if before is not None and value.dtype == held.dtype and torch.equal(before.to(value.dtype), value):
                    value = before  # saved by a version that kept the rounded values alone
                held.copy_(value)
                if (sharded or not rank) and not torch.equal(held.to("cpu").to(value.dtype), value):
                    self.values[name] = value.clone()
            for name, buffer in engine.module.named_buffers():
                if name in state:
                    buffer.copy_(state[name].contiguous())

    def state(self, engine: Any) -> dict[str, Any]:
        """The entry of a checkpoint.

        Values that the network has changed, as a moving average does that it keeps in frozen parameters, are those of
        the engine from now on.
        """
        import torch

        for name, parameter in _untrained(engine.module):
            value = self.values.get(name)
            if value is not None and not torch.equal(value.to(held := _held(parameter, value)), held):
                del self.values[name]
        return {"trained": self.trained, "values": self.values, "shared": self.shared}


def _shared(module: "torch.nn.Module") -> dict[str, str]:
    """Further names of parameters and buffers that have several, with the first name of each."""
    first: dict[int, str] = {}
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: kept for name, value in named if (kept := first.setdefault(id(value), name)) != name}


def share_of(value: "torch.Tensor", size: int, rank: int) -> "torch.Tensor":
    """A rank's share of a parameter's values, as ZeRO 3 divides them: `size` values for each rank, the rest fewer."""
    return value.detach().flatten()[rank * size : (rank + 1) * size]


def own_values(parameter: Any) -> Any:
    """A parameter's values on this rank: all of them, or its share under ZeRO 3 without the padding behind it."""
    import torch

    if not hasattr(parameter, "ds_id"):
        return parameter.data
    size = parameter.ds_tensor.numel()
    before = size * torch.distributed.get_rank(parameter.ds_process_group)
    return parameter.ds_tensor.data[: max(0, parameter.ds_numel - before)]


def _untrained(module: "torch.nn.Module") -> list[tuple[str, Any]]:
    """Every parameter without a gradient, under all its names."""
    return [(n, p) for n, p in module.named_parameters(remove_duplicate=False) if not (p.requires_grad and numel(p))]


def _held(parameter: Any, value: "torch.Tensor") -> Any:
    """A parameter's values on this rank: all of them, or as many as `value` has of its share under ZeRO 3.

    DeepSpeed leaves the padding behind a share as it finds it.
    """
    return parameter.ds_tensor.data[: value.numel()] if hasattr(parameter, "ds_id") else parameter.data
