"""What every training worker does, step by step. DeepSpeed owns optimisation; this owns the order of things.

Knows nothing of registries and bundles: it ends with a checkpoint whose position says the run is complete.
"""

import math
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from maas_ray import storage
from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import NonFiniteLossError, NotFoundError, StorageError
from maas_ray.tasks import NetworkSpec
from maas_ray.tasks.task import Outcomes, joined
from maas_ray.training import checkpoint, events, resume
from maas_ray.training.checkpoint import Position
from maas_ray.training.deepspeed_build import load_communication
from maas_ray.training.deepspeed_config import precision, resolve, zero_stage
from maas_ray.training.events import Event
from maas_ray.training.feed import EPOCH, batches
from maas_ray.training.mfu import flops_per_token, peak_flops
from maas_ray.training.plan import Ledger, Plan
from maas_ray.training.spec import TrainSpec, counted
from maas_ray.training.zero3 import build_sharded

_LOOK_SECONDS = 5.0
# From the largest loss scale to 1, each value tried twice (DeepSpeed's hysteresis), and more.
_MOST_TRIES = 80


@dataclass(frozen=True)
class Job:
    """All that a worker is told."""

    spec: TrainSpec
    dataset: PreparedDataset
    plan: Plan
    home: str
    """URI of the run's directory: its checkpoints."""
    events: Any
    """Handle of the `EventBuffer` actor."""
    may_leave: bool
    """Whether the workers may be told to save and leave: machines come and go."""
    validator: Any
    """Handle of the `Validator` actor, which measures checkpoints beside the training. None: the workers measure."""


def train_worker(config: dict[str, Job]) -> NonFiniteLossError | None:
    """Train from the newest whole checkpoint, or from the start, to the end. What stopped it for good, or None.

    A loss that is not finite would be so again after a restart, so it is returned rather than raised:
    Ray Train restarts workers that raise.
    """
    try:
        _Worker(config["job"]).run()
    except NonFiniteLossError as error:
        return error
    return None


class _Worker:
    def __init__(self, job: Job) -> None:
        import ray.train
        import torch

        context = ray.train.get_context()
        self.job, self.rank, self.world = job, context.get_world_rank(), context.get_world_size()
        self.spec, self.task = job.spec, job.dataset.task
        self.device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, int(self.spec.cpus_per_worker)))
        config = resolve(
            self.spec,
            workers=self.world,
            total_steps=job.plan.total_steps,
            hidden_size=getattr(self.spec.network, "hidden_size", None),
            on_cpu=self.device.type == "cpu",
        )
        self.position = Position(step=0, workers=self.world, deepspeed=config)
        with resume.newest(job.home, self.rank, context.get_local_rank(), self.world, self._say) as saved:
            if saved and saved.universal:
                config = config | {"checkpoint": {**config.get("checkpoint", {}), "load_universal": True}}
            self.engine = self._engine(config)
            if saved:
                saved.load(self.engine, self.rank, self.spec.seed)
                before = saved.position
                self.position = before.model_copy(update={"workers": self.world, "deepspeed": self.position.deepspeed})
                made = f", made by {counted(before.workers)}" if before.workers != self.world else ""
                self._say(f"resumed from the checkpoint at step {before.step:,}{made}, on {counted(self.world)}")
        self.micro_batch = self.engine.train_micro_batch_size_per_gpu()
        self.ledger = Ledger()
        self.metrics: dict[str, float] = {}
        self.began, self.seconds = time.perf_counter() - self.position.seconds, self.position.seconds
        self.saving: Future[None] | None = None
        # Both are known for tokens on GPUs in 16 bits; else there is no MFU to tell.
        self.peak, self.flops_per_unit = 0.0, 0.0
        if self.device.type == "cuda" and self.task.unit == "tokens" and precision(self.spec) != "fp32":
            self.peak = self.world * (peak_flops(torch.cuda.get_device_name(self.device)) or 0.0)
            # Under ZeRO 3 a parameter is a shard, and knows how many numbers the whole one has.
            parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.module.parameters())
            shape = getattr(self.engine.module, "config", None)
            self.flops_per_unit = flops_per_token(parameters, shape, self.task.units_per_row)
        self.spare: dict[str, Any] = {}
        self.window = _Window()

    def _engine(self, config: dict[str, Any]) -> Any:
        import deepspeed
        import torch

        if self.device.type == "cpu":
            load_communication()  # else DeepSpeed does, under a lock that a killed process leaves behind
        # The same initial weights on every rank; dropout differs.
        torch.manual_seed(self.spec.seed)
        spec: NetworkSpec = self.spec.network
        network = build_sharded(spec, self.task, config) if zero_stage(config) == 3 else spec.build(self.task)
        torch.manual_seed(self.spec.seed + 1 + self.rank)
        engine, _, _, _ = deepspeed.initialize(
            model=network, model_parameters=network.parameters(), config=config, dist_init_required=False
        )
        checkpoint.hold(engine)
        return engine

    def run(self) -> None:
        total, spec = self.job.plan.total_steps, self.spec
        if self.position.ended:
            return
        self.engine.train()
        feed = batches(
            self.job.dataset, self.job.plan, rank=self.rank, workers=self.world, start_step=self.position.step
        )
        looks_every, looked = spec.log_every_steps, (self.position.step, self.seconds)
        for step in range(self.position.step + 1, total + 1):
            self._step(step, feed)
            ended = "every step is done" if step == total else ""
            saves, validates = step % spec.checkpoint.every_steps == 0, step % spec.validate_every == 0
            if ended or saves or validates or step % spec.log_every_steps == 0:
                self._report(step)
                ended = ended or self._out_of_time()
            if self.job.may_leave and step % looks_every == 0 and not ended:
                if why := self._called_away():
                    self._report(step)
                    self._leave(step, why)
                # A notice may come half a minute before, so slow steps look oftener; all ranks have the same clock.
                each = (self.seconds - looked[1]) / (step - looked[0])
                looks_every = max(1, min(spec.log_every_steps, int(_LOOK_SECONDS / each))) if each else looks_every
                looked = step, self.seconds
            if validates and not ended:
                self._collect()
                ended = self._no_better()
            if ended:
                self._validate(step, final=True)
                self._collect()
            elif validates and not self.job.validator:
                self._validate(step)
            if ended or saves:
                self._save(step, ended, validate=validates and not ended)
            if ended:
                if step < total:
                    self._say(f"ended at step {step:,}: {ended}")
                return

    def _out_of_time(self) -> str:
        limit = self.spec.max_minutes
        return f"max_minutes ({limit:g}) are over" if limit and self.seconds >= 60 * limit else ""

    def _collect(self) -> None:
        """Take in the last validation beside the training; wait for it where it is not there yet."""
        import ray

        name = self.position.validating
        if not name:
            return
        started = time.perf_counter()
        self._written()
        metrics = {}
        if self.rank == 0 and self.job.validator:  # there may be no room for one any more
            try:
                metrics = ray.get(self.job.validator.measure.remote(name, self.job.events))
            except ray.exceptions.RayError as error:
                self._say(f"checkpoint {name} could not be validated: {str(error).strip().splitlines()[-1]}")
        metrics = resume.agreed(metrics)
        self._push(self.position.step, {events.VALIDATION_SECONDS: time.perf_counter() - started})
        self.position = self.position.model_copy(update={"validating": "", "unjudged": metrics.get("validation/loss")})
        self.window.started = time.perf_counter()

    def _written(self) -> None:
        """Return when every worker's part of the last checkpoint is in storage."""
        if self.saving is not None:
            self.saving.result()
        resume.barrier()

    def _no_better(self) -> str:
        """Why the run is to end: the validation loss gets no lower. Empty: it is not to.

        Judged is the validation before this one, wherever they are made: beside the training this one is yet to come.
        """
        stopping, loss = self.spec.early_stopping, self.position.unjudged
        if loss is None or stopping is None:
            return ""
        lowest = self.position.lowest_loss
        better = lowest is None or loss < lowest - stopping.min_delta
        since = 0 if better else self.position.validations_since + 1
        self.position = self.position.model_copy(
            update={"lowest_loss": loss if better else lowest, "validations_since": since, "unjudged": None}
        )
        return f"the validation loss was no lower {since} times" if since >= stopping.patience else ""

    def _called_away(self) -> str:
        """Why all workers are to save and leave; every rank is told the same at the same step. Empty: they go on."""
        import ray.train
        import torch

        asked = [
            ray.train.get_preemption_info() is not None,
            self.rank == 0 and ray.get(self.job.events.leaving.remote()),
        ]
        flags = torch.tensor(asked, dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        preempted, resized = flags.tolist()
        return "a machine of this run is about to go" if preempted else "the workers are to be resized" * resized

    def _leave(self, step: int, why: str) -> None:
        """Save, and end this attempt as soon as every rank's part is in storage; no step is lost.

        Raises:
            RayActorError: as if the machine had gone already. Ray Train counts that as no failure, and starts
                the workers again on those that stay.
        """
        import ray

        self._say(f"{why}: saving at step {step:,}")
        self._save(step, "", validate=False)
        self._written()
        if self.rank == 0:
            ray.get(self.job.events.set_leaving.remote(False))
        raise ray.exceptions.RayActorError(error_msg=why, preempted=True)

    def _step(self, step: int, feed: Iterator[dict[str, np.ndarray]]) -> None:
        """Read a worker's rows of one optimizer step and take it, in as many passes as gradients are accumulated over.

        Every row of a step weighs the same. Where they do not come out even over workers and passes, and in the
        short last step, a pass with fewer rows weighs less, and one without any repeats an old row with no weight:
        under ZeRO 3 a pass is collective, so every worker makes the same number of them.
        """
        rows: dict[str, np.ndarray] = {}
        low, high = self.job.plan.share(step - 1, self.rank, self.world)
        waited = time.perf_counter()
        if high > low:
            rows = next(feed)
            self.ledger += Ledger.of(rows[EPOCH], rows["index"])
        self.window.data_seconds += time.perf_counter() - waited
        self.window.losses += self._taken(step, rows, high - low)
        self.window.steps += 1

    def _taken(self, step: int, rows: dict[str, np.ndarray], count: int) -> list[Any]:
        """Take one optimizer step; the loss of each pass.

        Where gradients overflow in fp16, DeepSpeed lowers the loss scale and leaves the step out: its rows would be
        lost, and the schedule would end too late. So the step is taken again, until its gradients fit.

        Raises:
            NonFiniteLossError: they fit with no loss scale; on every rank alike.
        """
        falls = self.engine.fp16_enabled() and self.engine.dynamic_loss_scale()
        tries, scale = 0, self.engine.optimizer.loss_scale if falls else 1.0
        while True:
            try:
                losses = self._passes(step, rows, count)
            except Exception as error:
                # DeepSpeed's own end of it has no type of its own.
                if not (falls and str(error).startswith("Current loss scale already at minimum")):
                    raise
                raise NonFiniteLossError(step, math.inf, self._advice(), of="gradient norm") from error
            tries += 1
            if self.engine.was_step_applied() or not falls:
                break
            if tries == _MOST_TRIES:
                raise NonFiniteLossError(step, math.inf, self._advice(), of="gradient norm")
        if tries > 1:
            lowered = self.engine.optimizer.loss_scale
            told = f"step {step:,}: gradients overflowed in fp16; taken again, loss scale {scale:g} → {lowered:g}"
            self._push(step, {events.LOSS_SCALE: lowered}, told)
        elif not self.engine.was_step_applied():
            self._push(step, {}, f"step {step:,}: gradients are not finite; DeepSpeed left the weights as they were")
        return losses

    def _passes(self, step: int, rows: dict[str, np.ndarray], count: int) -> list[Any]:
        """The forward and backward passes of one step over this worker's `count` rows, and the update."""
        losses = []
        passes = self.engine.gradient_accumulation_steps()
        for start in range(0, passes * self.micro_batch, self.micro_batch):
            some = max(0, min(self.micro_batch, count - start))
            if some:
                part = {name: values[start : start + some] for name, values in rows.items()}
                self.spare = self._on_device(self.task.collate(part))
            weight = some * passes * self.world / self.job.plan.rows_in(step - 1)
            loss = self.task.loss(self.engine, self.spare or self._any_row())
            if weight != 1.0:
                loss = loss * weight
            self.engine.backward(loss * self._scale_left_out())
            self.engine.step()
            losses.append(loss.detach())
        return losses

    def _scale_left_out(self) -> float:
        """What a loss must be multiplied by since DeepSpeed does not, though it divides the gradients by it.

        So it is in fp16 without ZeRO (DeepSpeed's pull request 8393): left alone, such a run trains nothing.
        """
        unscaled = self.engine.fp16_enabled() and not self.engine.zero_optimization()
        return float(self.engine.optimizer.loss_scale) if unscaled else 1.0

    def _any_row(self) -> dict[str, Any]:
        first = next(self.job.dataset.read([self.job.dataset.row_group("train", 0)]))
        return self._on_device(self.task.collate({name: values[:1] for name, values in first.items()}))

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _report(self, step: int) -> None:
        """Say how the steps since the last report went; stop the run if a loss was not finite.

        Raises:
            NonFiniteLossError: on every rank alike.
        """
        import torch

        window, self.window = self.window, _Window()
        if not window.steps:
            return
        losses = torch.stack(window.losses).float().view(window.steps, -1).mean(dim=1)
        # The clock is averaged along, so that all ranks go by the same time.
        clock = torch.tensor([time.perf_counter() - self.began], device=losses.device)
        shared = torch.cat([losses, clock])
        torch.distributed.all_reduce(shared)
        shared = (shared / self.world).cpu()
        losses, self.seconds = shared[:-1], float(shared[-1])
        for offset, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                raise NonFiniteLossError(step - window.steps + 1 + offset, loss, self._advice())
        seconds = (time.perf_counter() - window.started) / window.steps
        units = self.job.plan.batch_size * self.task.units_per_row
        norm = self._gradient_norm()
        self._push(
            step,
            {
                events.LOSS: float(losses.mean()),
                events.LEARNING_RATE: float(self.engine.get_lr()[0]),
                events.UNITS_PER_SECOND: units / seconds,
                events.STEP_SECONDS: seconds,
                events.DATA_WAIT_SHARE: window.data_seconds / (seconds * window.steps),
                **({events.GRADIENT_NORM: norm} if norm is not None else {}),
                **({events.MFU: self.flops_per_unit * units / seconds / self.peak} if self.peak else {}),
            },
        )

    def _gradient_norm(self) -> float | None:
        """Of the last step, before clipping."""
        from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

        norm = self.engine.get_global_grad_norm()
        # Alone among DeepSpeed's optimizers this one tells it as the loss scale has multiplied it.
        scaled = isinstance(self.engine.optimizer, FP16_UnfusedOptimizer)
        return None if norm is None else float(norm) / (self.engine.optimizer.loss_scale if scaled else 1.0)

    def _advice(self) -> str:
        rate = self.engine.get_lr()[0]
        causes = [
            f"the learning rate is too high (now {rate:.2g}, peak {self.spec.learning_rate:.2g}): try a tenth of it",
            f"warm-up is too short (warmup_steps: {self.spec.warmup_steps})",
        ]
        if not self.spec.gradient_clipping:
            causes.append("gradients are not clipped (gradient_clipping: 0): try 1.0")
        if precision(self.spec) != "fp32":
            causes.append(f"numbers overflow in {precision(self.spec)}: try precision: fp32")
        causes.append("the data holds values that are not finite")
        return "Likely causes, the commonest first:\n" + "\n".join(f"  - {cause}" for cause in causes)

    def _validate(self, step: int, *, final: bool = False) -> None:
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        for split in ("validation", "test") if final else ("validation",):
            if self.job.dataset.meta.splits[split].rows:
                measured = self._measure(split, None if final else self.spec.validation.max_rows)
                metrics |= {f"{split}/{name}": value for name, value in measured.items()}
        if metrics:
            took = {events.VALIDATION_SECONDS: time.perf_counter() - started}
            self._push(step, metrics | took, f"step {step:,}: {events.in_words(metrics)}")
        self.metrics = metrics
        self.position = self.position.model_copy(update={"unjudged": metrics.get("validation/loss")})
        self.window.started = time.perf_counter()

    def _measure(self, split: str, limit: int | None) -> dict[str, float]:
        """Metrics over a split (its first `limit` rows), shared among the ranks.

        Under ZeRO 3 a forward pass is collective, so every rank makes the same number of them: one that
        has run out of rows repeats its last batch, uncounted.
        """
        import torch

        groups = self.job.dataset.row_groups(split)
        rows = min(self.job.dataset.split(split).rows, limit or 1 << 62)
        share = -(-rows // self.world)
        low, high = min(self.rank * share, rows), min((self.rank + 1) * share, rows)
        stored = self.job.dataset.batches(groups, self.micro_batch, low, high)
        found: list[Outcomes] = []
        batch: dict[str, Any] = {}
        self.engine.eval()
        with torch.no_grad():
            for _ in range(-(-share // self.micro_batch)):
                rows_left = next(stored, None)
                if rows_left is not None:
                    batch = self._on_device(self.task.collate(rows_left))
                outcomes = self.task.outcomes(self.engine, batch or self._any_row())
                if rows_left is not None:
                    found.append(outcomes)
        self.engine.train()
        parts: list[Any] | None = [None] * self.world if self.rank == 0 else None
        torch.distributed.gather_object(joined(found), parts)
        metrics: dict[str, float] = resume.agreed(self.task.metrics(joined(parts)) if parts else {})
        return metrics

    def _save(self, step: int, ended: str, *, validate: bool) -> None:
        """Copy the state to host memory; it goes to storage beside the training, one checkpoint at a time."""
        import ray.train
        from ray.train import Checkpoint, CheckpointUploadMode

        started = time.perf_counter()
        if self.saving is not None:
            self.saving.result()  # raises what went wrong: no step is made on top of two intervals that are unsaved
        metrics, self.metrics = self.metrics, {}
        name = resume.agreed(checkpoint.name_of(step, uuid.uuid4().hex[:6]))
        beside = {"validating": name} if validate and self.job.validator else {}
        standing = {"step": step, "metrics": metrics, "ended": ended, "seconds": self.seconds}
        self.position = self.position.model_copy(update=standing | beside | self._counted_rows())
        snapshot = checkpoint.take(self.engine, self.rank, self.position)
        stalled = time.perf_counter() - started
        storage_context = ray.train.get_context().get_storage()
        self.saving = done = Future[None]()

        def at(name: str) -> Checkpoint:  # what Ray Train is told; it neither reads nor writes there
            return Checkpoint(f"{storage_context.experiment_fs_path}/{name}", storage_context.storage_filesystem)

        def write(_: Checkpoint, name: str) -> Checkpoint:
            began = time.perf_counter()
            try:
                snapshot.write(storage.join(self.job.home, name), self.spec.checkpoint.retry_seconds, self._complain)
                if self.rank == 0:
                    self._prune(snapshot.position.validating)
            except BaseException as error:
                done.set_exception(error)
                raise
            done.set_result(None)
            self._push(step, {events.CHECKPOINT_WRITE_SECONDS: time.perf_counter() - began})
            return at(name)

        ray.train.report(
            {"step": step, "validate": name if beside else "", **self.position.metrics},
            checkpoint=at(name),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=write,
        )
        self._push(step, {events.CHECKPOINT_SECONDS: stalled})
        self.window.started = time.perf_counter()

    def _prune(self, validating: str) -> None:
        """Delete old checkpoints. What cannot be deleted now is tried again with the next one; the new one is saved."""
        try:
            checkpoint.prune(self.job.home, self.spec.checkpoint.keep, validating)
        except (StorageError, NotFoundError) as error:
            self._say(f"old checkpoints could not be deleted ({error}); trying again with the next one")

    def _counted_rows(self) -> dict[str, int]:
        """What all workers together have trained on since the run began."""
        import torch

        ours, self.ledger = self.ledger, Ledger()
        # The sum wraps around at 2⁶⁴, as the ledger's does.
        sums = torch.from_numpy(np.array([ours.rows, ours.digest], np.uint64).view(np.int64)).to(self.device)
        torch.distributed.all_reduce(sums)
        rows, digest = (int(value) for value in sums.cpu().numpy().view(np.uint64))
        total = self.position.ledger + Ledger(rows, digest)
        return {"rows": total.rows, "digest": total.digest}

    def _push(self, step: int, metrics: dict[str, float], text: str = "") -> None:
        if self.rank == 0:
            event = Event(step=step, metrics=metrics, text=text, total_steps=self.job.plan.total_steps)
            self.job.events.push.remote(event)

    def _say(self, text: str) -> None:
        self._push(self.position.step, {}, text)

    def _complain(self, text: str) -> None:
        """Say what may be so on this worker alone."""
        self.job.events.push.remote(Event(step=self.position.step, text=f"worker {self.rank}: {text}"))


class _Window:
    """What has gathered since the last report. Losses stay on the device until then."""

    def __init__(self) -> None:
        self.losses: list[Any] = []
        self.steps = 0
        self.data_seconds = 0.0
        self.started = time.perf_counter()


def worker_environment(*, on_cpu: bool, threads: int) -> dict[str, str]:
    """Environment variables of a training worker."""
    environment = {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore")}
    if on_cpu:
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        # A step allocates and frees the same tensors as the one before. Left alone, glibc gives large ones back to the
        # system each time, and the kernel clears every page anew: up to a third of a small step.
        environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    return environment
