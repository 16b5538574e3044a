"""What every training worker does, step by step. DeepSpeed owns optimisation; this owns the order of things.

Knows nothing of registries and bundles: it ends with a checkpoint whose position says the run is complete.
"""

import math
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import NonFiniteLossError
from maas_ray.tasks import NetworkSpec
from maas_ray.train import checkpoint
from maas_ray.train.checkpoint import Position
from maas_ray.train.events import Event
from maas_ray.train.feed import Plan, batches
from maas_ray.train.spec import TrainSpec


@dataclass(frozen=True)
class Job:
    """All that a worker is told."""

    spec: TrainSpec
    dataset: PreparedDataset
    plan: Plan
    deepspeed: dict[str, Any]
    events: Any
    """Handle of the `EventBuffer` actor."""


def train_worker(config: dict[str, Job]) -> NonFiniteLossError | None:
    """Train from the last checkpoint, or from the start, to the end. What stopped it for good, or None.

    A loss that is not finite would be so again after a restart, so it is returned rather than raised:
    Ray Train restarts workers that raise.
    """
    import ray.train

    try:
        worker = _Worker(config["job"])
        resumed = ray.train.get_checkpoint()
        if resumed:
            with resumed.as_directory() as directory:
                worker.resume(Path(directory))
        worker.run()
    except NonFiniteLossError as error:
        return error
    return None


class _Worker:
    def __init__(self, job: Job) -> None:
        import deepspeed
        import ray.train
        import torch

        context = ray.train.get_context()
        self.job, self.rank, self.world = job, context.get_world_rank(), context.get_world_size()
        self.spec, self.task = job.spec, job.dataset.task
        self.device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, int(self.spec.cpus_per_worker)))
        # The same initial weights on every rank; dropout differs.
        torch.manual_seed(self.spec.seed)
        spec: NetworkSpec = self.spec.network
        network = spec.build(self.task)
        torch.manual_seed(self.spec.seed + 1 + self.rank)
        self.engine, _, _, _ = deepspeed.initialize(
            model=network, model_parameters=network.parameters(), config=job.deepspeed, dist_init_required=False
        )
        self.micro_batch = self.engine.train_micro_batch_size_per_gpu()
        self.position = Position(step=0, workers=self.world, deepspeed=job.deepspeed)
        self.window = _Window()

    def resume(self, directory: Path) -> None:
        checkpoint.check(directory)
        self.position = checkpoint.load(self.engine, directory, self.rank)
        self._say(f"resumed from the checkpoint at step {self.position.step}")

    def run(self) -> None:
        total, spec = self.job.plan.total_steps, self.spec
        if self.position.step >= total:
            return
        self.engine.train()
        feed = self._feed()
        validate_every = spec.validation.every_steps or spec.checkpoint.every_steps
        for step in range(self.position.step + 1, total + 1):
            self._step(feed)
            last = step == total
            saves = last or step % spec.checkpoint.every_steps == 0
            if saves or step % spec.log_every_steps == 0:
                self._report(step)
            if last or step % validate_every == 0:
                self._validate(step, final=last)
            if saves:
                self._save(step)

    def _feed(self) -> Iterator[dict[str, Any]]:
        feed = batches(
            self.job.dataset,
            self.job.plan,
            rank=self.rank,
            start_step=self.position.step,
            batch_size=self.micro_batch,
        )
        for batch in feed:
            yield self._on_device(self.task.collate(batch))

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _step(self, feed: Iterator[dict[str, Any]]) -> None:
        """One optimizer step: as many forward and backward passes as gradients are accumulated over."""
        for _ in range(self.engine.gradient_accumulation_steps()):
            waited = time.perf_counter()
            batch = next(feed)
            self.window.data_seconds += time.perf_counter() - waited
            loss = self.task.loss(self.engine, batch)
            self.engine.backward(loss)
            self.engine.step()
            self.window.losses.append(loss.detach())
        self.window.steps += 1

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
        torch.distributed.all_reduce(losses)
        losses = (losses / self.world).cpu()
        for offset, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                raise NonFiniteLossError(step - window.steps + 1 + offset, loss, self._advice())
        seconds = (time.perf_counter() - window.started) / window.steps
        units = self.job.plan.batch_size * self.task.units_per_row
        norm = self.engine.get_global_grad_norm()
        self._push(
            step,
            {
                "train/loss": float(losses.mean()),
                "train/learning_rate": float(self.engine.get_lr()[0]),
                "train/units_per_second": units / seconds,
                "train/step_seconds": seconds,
                "train/data_wait_share": window.data_seconds / (seconds * window.steps),
                **({"train/gradient_norm": float(norm)} if norm is not None else {}),
            },
        )

    def _advice(self) -> str:
        rate = self.engine.get_lr()[0]
        causes = [
            f"the learning rate is too high (now {rate:.2g}, peak {self.spec.learning_rate:.2g}): try a tenth of it",
            f"warm-up is too short (warmup_steps: {self.spec.warmup_steps})",
        ]
        if not self.spec.gradient_clipping:
            causes.append("gradients are not clipped (gradient_clipping: 0): try 1.0")
        if self.spec.precision != "fp32":
            causes.append(f"numbers overflow in {self.spec.precision}: try precision: fp32")
        causes.append("the data holds values that are not finite")
        return "Likely causes, the commonest first:\n" + "\n".join(f"  - {cause}" for cause in causes)

    def _validate(self, step: int, *, final: bool) -> None:
        metrics: dict[str, float] = {}
        for split in ("validation", "test") if final else ("validation",):
            if self.job.dataset.meta.splits[split].rows:
                measured = self._measure(split, None if final else self.spec.validation.max_rows)
                metrics |= {f"{split}/{name}": value for name, value in measured.items()}
        if metrics:
            shown = "  ".join(f"{name.replace('/', ' ')} {value:.4g}" for name, value in metrics.items())
            self._push(step, metrics, f"step {step}: {shown}" if self.rank == 0 else "")
        self.position = self.position.model_copy(update={"metrics": metrics})
        self.window.started = time.perf_counter()

    def _measure(self, split: str, limit: int | None) -> dict[str, float]:
        """Metrics over a split (its first `limit` rows), shared among the ranks.

        Under ZeRO 3 a forward pass is collective, so every rank makes the same number of them: one that
        has run out of rows repeats its last batch, uncounted.
        """
        import torch

        groups = self.job.dataset.row_groups(split)
        rows = min(sum(group.rows for group in groups), limit or 1 << 62)
        share = -(-rows // self.world)
        low, high = min(self.rank * share, rows), min((self.rank + 1) * share, rows)
        mine = [group for group in groups if group.start < high and group.start + group.rows > low]
        mine = mine or groups[:1]
        sums: dict[str, Any] = {}
        passes = -(-share // self.micro_batch)
        self.engine.eval()
        with torch.no_grad():
            made = 0
            batch: dict[str, Any] = {}
            for stored in _rebatched(self.job.dataset.read(mine), low, high, self.micro_batch):
                batch = self._on_device(self.task.collate(stored))
                for name, value in self.task.measure(self.engine, batch).items():
                    sums[name] = sums.get(name, 0) + value
                made += 1
            if not batch:
                first = next(self.job.dataset.read(groups[:1]))
                batch = self._on_device(self.task.collate({name: values[:1] for name, values in first.items()}))
            while made < passes or not sums:
                for name, value in self.task.measure(self.engine, batch).items():
                    sums.setdefault(name, torch.zeros_like(value))
                made += 1
        self.engine.train()
        names = sorted(sums)
        totals = torch.stack([sums[name].to(self.device, torch.float64) for name in names])
        torch.distributed.all_reduce(totals)
        return self.task.summarise(dict(zip(names, totals.tolist(), strict=True)))

    def _save(self, step: int) -> None:
        import ray.train
        from ray.train import Checkpoint

        self.position = self.position.model_copy(update={"step": step})
        started = time.perf_counter()
        # Unique to the attempt, so that shards of an attempt that died are never mixed in.
        name = f"step-{step:08d}-{uuid.uuid4().hex[:6]}"
        with tempfile.TemporaryDirectory(prefix="maas-checkpoint-") as directory:
            checkpoint.save(self.engine, Path(directory), self.rank, self.position)
            ray.train.report(
                {"step": step, **self.position.metrics},
                checkpoint=Checkpoint.from_directory(directory),
                checkpoint_dir_name=name,
            )
        self._push(step, {"train/checkpoint_seconds": time.perf_counter() - started})
        self.window.started = time.perf_counter()

    def _push(self, step: int, metrics: dict[str, float], text: str = "") -> None:
        if self.rank == 0:
            event = Event(step=step, metrics=metrics, text=text, total_steps=self.job.plan.total_steps)
            self.job.events.push.remote(event)

    def _say(self, text: str) -> None:
        self._push(self.position.step, {}, text)


class _Window:
    """What has gathered since the last report. Losses stay on the device until then."""

    def __init__(self) -> None:
        self.losses: list[Any] = []
        self.steps = 0
        self.data_seconds = 0.0
        self.started = time.perf_counter()


def _rebatched(
    chunks: Iterator[dict[str, np.ndarray]], low: int, high: int, size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Rows whose `index` is in [low, high), in batches of `size`; the last may be smaller."""
    held: dict[str, np.ndarray] = {}
    for chunk in chunks:
        chosen = (chunk["index"] >= low) & (chunk["index"] < high)
        rows = {name: values[chosen] for name, values in chunk.items()}
        held = {name: np.concatenate([held[name], rows[name]]) for name in rows} if held else rows
        whole = len(held["index"]) // size * size
        for start in range(0, whole, size):
            yield {name: values[start : start + size] for name, values in held.items()}
        held = {name: values[whole:] for name, values in held.items()}
    if held and len(held["index"]):
        yield held


def worker_environment(*, on_cpu: bool, threads: int) -> dict[str, str]:
    """Environment variables of a training worker."""
    environment = {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore")}
    if on_cpu:
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    return environment
