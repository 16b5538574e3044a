"""State that training changes and a version does not hold.

A version has the parameters and the persistent buffers of its network, and builds the rest anew. A non-persistent
buffer or an attribute that training changes, such as a running mean, would be what it was at the start. So the network
is asked as it is, and with such state as it was built. If an answer differs in one bit, the run ends. Caches that are
computed from the input, and counters, do not change answers.
"""

import copy
from collections import deque
from typing import Any

import numpy as np

from maas_ray.errors import PreflightError
from maas_ray.tasks.base import Outcomes
from maas_ray.training.collectives import from_all_ranks, from_first_rank
from maas_ray.training.deepspeed.document import zero_stage
from maas_ray.training.trainable import LOST, updates_copies
from maas_ray.training.worker.batches import Batches
from maas_ray.training.worker.job import Job, Rank
from maas_ray.training.worker.rehearsal import MAX_BYTES, answers, parameters_in

Key = tuple[str, str]
"""The name of a module, and that of a buffer or an attribute of it."""
State = dict[Key, Any]

_ABSENT = object()
_SHOWN = 5
_DEPTH = 8
_OF_DEEPSPEED = ("_external_params", "applied_pre_backward_ref_cnt", "wall_clock_breakdown")


class Unsaved:
    """The state of an engine's network outside its parameters and persistent buffers. All ranks call it together.

    Args:
        engine: DeepSpeed's, which has not computed yet.
        job: the run's.
        batches: makes batches of stored rows.
        rank: this worker.
    """

    def __init__(self, engine: Any, job: Job, batches: Batches, rank: Rank) -> None:
        self._engine, self._job, self._batches, self._rank = engine, job, batches, rank
        self._built = {key: _copied(value) for key, value in _state_of(engine.module).items()}
        self._trains = {name: parameter.requires_grad for name, parameter in engine.module.named_parameters()}
        self._names = set(engine.module.state_dict())
        self._changed_in_forward = _watched(engine)

    def check(self) -> None:
        """Return if a version would answer as the network does now. The random state stays as it is.

        Raises:
            PreflightError: it would not; raised on every rank alike.
        """
        problem = next(filter(None, from_all_ranks(self._changed())), "")  # a rank may see it alone
        if problem := problem or from_first_rank(self._forgotten()):
            raise PreflightError(f"a version of this network would answer otherwise: {problem}", code="state_not_saved")

    def _changed(self) -> str:
        """The problem of parameters that changed otherwise than by the optimizer. Empty: none did."""
        module = self._engine.module
        if names := [n for n, p in module.named_parameters() if p.requires_grad != self._trains.get(n)]:
            return (
                f"requires_grad of {_listed(names)} has changed since the network was built, which DeepSpeed's "
                "optimizer does not follow. Set it once in the constructor, and cut gradients with `.detach()`."
            )
        if names := sorted(self._names ^ set(module.state_dict())):
            return f"{_listed(names)}: added or removed since the network was built. Register it in the constructor."
        if self._changed_in_forward:
            return f"the forward pass changes {_listed(self._changed_in_forward)}, {LOST}."
        return ""

    def _forgotten(self) -> str:
        """The state that a version would lack, if it changes an answer. Empty: it does not."""
        now = _state_of(self._engine.module)
        keys = sorted(key for key in {*now, *self._built} if not _same(now.get(key), self._built.get(key)))
        if not (keys := from_first_rank(keys)):
            return ""
        batch = self._batches.any_row()
        held = {key: now.get(key, _ABSENT) for key in keys}
        as_built = {key: self._built.get(key, _ABSENT) for key in keys}
        try:
            one, again = (self._answers(held, batch) for _ in range(2))
            try:
                other = self._answers(as_built, batch)
            except Exception as error:  # whatever the user's code raises
                return f"it fails without {_listed(map('.'.join, keys))} ({error}). {_REMEDY}"
        finally:
            _put(self._engine.module, held)
        steady = (name for name in one if np.array_equal(one[name], again[name], equal_nan=one[name].dtype.kind == "f"))
        for name in steady:
            if not np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f"):
                names = _listed(part.lstrip(".") for part in map(".".join, keys))
                return f"training has changed {names}, and `{name}` of a row depends on it. {_REMEDY}"
        return ""

    def _answers(self, state: State, batch: dict[str, Any]) -> Outcomes:
        """The outcomes of a batch with some state, of which the network gets a copy."""
        import torch

        engine = self._engine
        _put(engine.module, {key: _copied(value) for key, value in state.items()})
        with torch.random.fork_rng([] if self._rank.on_cpu else [self._rank.device]):
            torch.manual_seed(0)
            engine.eval()
            try:
                return answers(self._job, engine, batch)
            finally:
                engine.train()


_REMEDY = (
    "A version holds parameters and persistent buffers alone: keep it in a buffer of `register_buffer(NAME, VALUE)`, "
    "and change that in place."
)


def _watched(engine: Any) -> list[str]:
    """Names of the trained parameters that the first forward pass in training changes; filled when it ends.

    Under ZeRO 3 parameters have no values before and after the pass, and of a large network no copy is made.
    """
    import torch

    changed: list[str] = []
    module = engine.module
    if not updates_copies(engine.config) or zero_stage(engine.config) == 3 or 4 * parameters_in(module) > MAX_BYTES:
        return changed
    before: dict[str, Any] = {}

    def keep(part: Any, _: Any) -> None:
        if part.training:
            before.update({name: p.detach().clone() for name, p in part.named_parameters() if p.requires_grad})
            hooks[0].remove()

    def compare(part: Any, *_: Any) -> None:
        if before:
            changed.extend(n for n, p in part.named_parameters() if n in before and not torch.equal(before[n], p))
            before.clear()
            hooks[1].remove()

    hooks = [module.register_forward_pre_hook(keep), module.register_forward_hook(compare)]
    return changed


def _state_of(module: Any) -> State:
    """The values that a state dict of a network does not hold, as far as they can be copied and compared."""
    import torch

    of_others = {*vars(torch.nn.Module()), *_OF_DEEPSPEED}
    state: State = {}
    for name, part in module.named_modules():
        state |= {(name, key): part._buffers[key] for key in part._non_persistent_buffers_set & part._buffers.keys()}
        for key, value in vars(part).items():
            if key not in of_others and not key.startswith(("ds_", "_ds")) and _is_plain(value):
                state[name, key] = value
    return state


def _put(module: Any, state: State) -> None:
    for (name, key), value in state.items():
        part = module.get_submodule(name)
        place = part._buffers if key in part._non_persistent_buffers_set else part.__dict__
        if value is _ABSENT:
            place.pop(key, None)
        else:
            place[key] = value


def _is_plain(value: Any, depth: int = 0) -> bool:
    """True for numbers, text, tensors and arrays, and for containers and simple objects of such."""
    import torch

    if depth > _DEPTH:
        return False
    if isinstance(value, torch.Tensor):
        return not isinstance(value, torch.nn.Parameter)
    if isinstance(value, np.ndarray):
        return bool(value.dtype != object)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        return True
    inner = _inner(value)
    return inner is not None and all(_is_plain(one, depth + 1) for one in inner)


def _inner(value: Any) -> list[Any] | None:
    """The values inside a container or a simple object. None: it is neither."""
    import torch

    if isinstance(value, dict):
        return [*value.values()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [*value]
    if isinstance(value, type | torch.nn.Module) or callable(value) or not hasattr(value, "__dict__"):
        return None
    library = type(value).__module__.partition(".")[0]
    return None if library in ("torch", "transformers", "deepspeed", "keras") else [*vars(value).values()]


def _copied(value: Any) -> Any:
    """A copy that later steps do not change."""
    import torch

    if value is _ABSENT:
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple, deque):
        return type(value)(map(_copied, value))
    if isinstance(value, dict):
        copied = copy.copy(value)
        copied.update({key: _copied(one) for key, one in value.items()})
        return copied
    if _inner(value) is None or not hasattr(value, "__dict__"):
        return copy.copy(value)
    copied = copy.copy(value)
    vars(copied).update({key: _copied(one) for key, one in vars(value).items()})
    return copied


def _same(one: Any, other: Any) -> bool:
    import torch

    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return bool(alike and torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, set | frozenset):
        return bool(one == other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(_same, one, other))
    if _inner(one) is not None:
        return _same(vars(one), vars(other))
    return bool(one == other)


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
