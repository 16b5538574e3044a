"""One optimizer step: weighted forward and backward passes, and another try if fp16 gradients overflow."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from maas_ray.errors import DataError, NonFiniteLossError
from maas_ray.tasks import Task
from maas_ray.training import events
from maas_ray.training.deepspeed.engine import dynamic_loss_scale, missing_loss_scale
from maas_ray.training.plan import Plan
from maas_ray.training.worker.batches import Batch, Batches, Rows
from maas_ray.training.worker.job import Rank

MAX_TRIES = 80
"""From the largest loss scale to 1, each value tried twice (DeepSpeed's hysteresis), and some more."""

MAX_LEFT_OUT = 20
"""Steps in a row that may be left out, because their gradients are not finite, before the run stops."""

Push = Callable[[int, dict[str, float], str], None]
"""Reports metrics and a line of text at a step."""


class Taken(NamedTuple):
    """A step that was taken.

    Args:
        losses: the weighted loss of each pass.
        applied: True if the weights changed. False: the gradients were not finite, and the step was left out.
        learning_rate: the rate that it used.
    """

    losses: list[Any]
    applied: bool
    learning_rate: float


class _Weights(NamedTuple):
    """The weights of the rows of a step.

    Args:
        rows: of this worker's, int64 [n].
        total: the sum over all workers: a number, or a tensor [1] on the device.
        summing: the all-reduce of that tensor. None: `total` is known.
    """

    rows: np.ndarray
    total: Any
    summing: Any = None

    def weighted(self, loss: Any, part: slice, passes: int) -> Any:
        """The loss of a pass times its share of the weight.

        The sum stays on the device, so that no worker waits for the others or for its GPU before its forward pass.

        Args:
            loss: the mean over the rows of the pass.
            part: these rows.
            passes: the passes of the step on all workers.
        """
        share = int(self.rows[part].sum()) * passes
        if self.summing is None:
            weight = share / max(1, self.total)
            return loss if weight == 1.0 else loss * weight
        import torch

        self.summing.wait()
        # As with a number: no loss is multiplied in less than 32 bits.
        weight = (share / self.total.double().clamp(min=1)).to(torch.promote_types(loss.dtype, torch.float32))
        return (loss * weight.squeeze(0)).to(loss.dtype)


class Steps:
    """Takes optimizer steps.

    Args:
        engine: DeepSpeed's.
        task: the fitted task.
        batches: makes batches of stored rows.
        plan: says how many rows each step has, over all workers.
        rank: this worker.
        advice: gives likely causes of gradients that are not finite.
        push: reports metrics and text.
    """

    def __init__(
        self,
        engine: Any,
        task: Task,
        batches: Batches,
        plan: Plan,
        rank: Rank,
        *,
        advice: Callable[[], str],
        push: Push,
    ) -> None:
        self._engine, self._task, self._batches, self._plan, self._rank = engine, task, batches, plan, rank
        self._advice, self._push = advice, push
        self._micro_batch, self._passes = engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()
        # Every rank decides alike, because the sum over the ranks is collective.
        self._weighs = type(task).weights is not Task.weights
        self._spare: Batch = {}
        self._left_out = 0

    def take(self, step: int, rows: Rows, count: int, prepared: Iterator[Batch] | None = None) -> Taken:
        """Take one optimizer step over this worker's `count` rows.

        If gradients overflow in fp16, DeepSpeed lowers the loss scale and skips the step. Its rows would be lost, and
        the schedule would end too late. So the step is repeated until its gradients fit. In other precisions the same
        gradients would come again, so the step is left out.

        Args:
            step: the step, counted from 1.
            rows: this worker's rows.
            count: how many they are.
            prepared: batches of the passes with rows, as `Batches.of_step` gives them. None: they are made here.

        Raises:
            NonFiniteLossError: gradients do not fit at any loss scale, or too many steps in a row were left out;
                raised on every rank alike.
        """
        engine = self._engine
        learning_rate = float(engine.get_lr()[0])
        weights = self._weights(step, rows, count)
        tries, scale = 0, dynamic_loss_scale(engine)
        dynamic = scale is not None
        while True:
            try:
                batches = prepared or self._batches.of_step(step, rows, self._micro_batch)
                losses = self._forward_and_backward(batches, weights)
            except Exception as error:
                # DeepSpeed raises a plain exception at the smallest loss scale.
                if not (dynamic and str(error).startswith("Current loss scale already at minimum")):
                    raise
                raise NonFiniteLossError(step, math.inf, self._advice(), of="gradient norm") from error
            tries, prepared = tries + 1, None
            if engine.was_step_applied() or not dynamic:
                break
            if tries == MAX_TRIES:
                raise NonFiniteLossError(step, math.inf, self._advice(), of="gradient norm")
        if tries > 1:
            lowered = dynamic_loss_scale(engine) or 1.0
            text = f"step {step:,}: gradients overflowed in fp16; taken again, loss scale {scale:g} → {lowered:g}"
            self._push(step, {events.LOSS_SCALE: lowered}, text)
        applied = bool(engine.was_step_applied())
        self._left_out = 0 if applied else self._left_out + 1
        if self._left_out == MAX_LEFT_OUT:
            raise NonFiniteLossError(step, math.inf, self._advice(), of="gradient norm")
        return Taken(losses, applied, learning_rate)

    def _weights(self, step: int, rows: Rows, count: int) -> "_Weights":
        """The weights of this worker's rows, and their sum over all workers, which is waited for when it is needed."""
        if not self._weighs:
            return _Weights(np.ones(count, np.int64), self._plan.rows_in(step - 1))
        import torch

        weights = self._task.weights(rows) if count else np.zeros(0, np.int64)
        if weights.dtype.kind not in "iu" or weights.shape != (count,):
            raise DataError(
                f"weights of {type(self._task).__name__} must return integers [{count}], such as numbers of tokens; "
                f"it returned {weights.dtype} {list(weights.shape)}.",
                code="invalid_weights",
            )
        total = torch.tensor([int(weights.sum())]).to(self._rank.device, non_blocking=True)
        return _Weights(weights, total, torch.distributed.all_reduce(total, async_op=True))

    def _forward_and_backward(self, batches: Iterator[Batch], weights: "_Weights") -> list[Any]:
        """The passes of one step over this worker's rows, and the update; gives the weighted loss of each pass.

        Every unit of weight counts the same in a step. DeepSpeed takes the mean over passes and workers, so each
        pass's loss is multiplied by its share of the weight. If rows do not divide evenly, and in the short last
        step, a pass has fewer rows. A pass without rows repeats an earlier batch with weight 0: under ZeRO 3 passes
        are collective, so every worker makes the same number of them.
        """
        losses = []
        for start in range(0, self._passes * self._micro_batch, self._micro_batch):
            part = slice(start, start + self._micro_batch)
            if len(weights.rows[part]):
                self._spare = next(batches)
            loss = self._task.loss(self._engine, self._spare or self._batches.any_row())
            loss = weights.weighted(loss, part, self._passes * self._rank.world)
            self._engine.backward(loss * missing_loss_scale(self._engine))
            self._engine.step()
            losses.append(loss.detach())
        return losses
