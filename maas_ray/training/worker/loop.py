"""The training loop of a worker: the order of steps, reports, validations and checkpoints.

It knows nothing of registries and bundles: it ends with a checkpoint whose position says that the run is complete.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from maas_ray.errors import NonFiniteLossError
from maas_ray.training import events
from maas_ray.training.checkpoints import resume
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.checkpoints.snapshot import hold
from maas_ray.training.collectives import from_first_rank
from maas_ray.training.deepspeed.engine import build_engine
from maas_ray.training.deepspeed.resolve import resolve
from maas_ray.training.feed import EPOCH, batches
from maas_ray.training.hyperparameters import count_of_workers
from maas_ray.training.plan import Ledger
from maas_ray.training.validation.early_stopping import judge
from maas_ray.training.worker.advice import advice
from maas_ray.training.worker.batches import Batches
from maas_ray.training.worker.job import Job, Rank
from maas_ray.training.worker.measure import measure
from maas_ray.training.worker.report import Progress, Reporter
from maas_ray.training.worker.saving import Saver
from maas_ray.training.worker.step import Steps

_POLL_SECONDS = 5.0


def train_worker(config: dict[str, Job]) -> NonFiniteLossError | None:
    """Train from the newest whole checkpoint, or from the start, to the end.

    A loss that is not finite would be so again after a restart. So the error is returned, not raised: Ray Train
    restarts workers that raise.
    """
    try:
        Worker(config["job"]).run()
    except NonFiniteLossError as error:
        return error
    return None


class Worker:
    """One worker's run of a job."""

    def __init__(self, job: Job) -> None:
        import torch

        self.job, self.spec, self.task = job, job.spec, job.dataset.task
        self.ranks = Rank.current()
        self.rank, self.world = self.ranks.rank, self.ranks.world
        if self.ranks.on_cpu:
            torch.set_num_threads(self.spec.threads)
        config = resolve(
            self.spec,
            workers=self.world,
            total_steps=job.plan.total_steps,
            hidden_size=getattr(self.spec.network, "hidden_size", None),
            on_cpu=self.ranks.on_cpu,
        )
        self.reporter = Reporter(job.events, self.rank, job.plan.total_steps)
        self.position = Position(step=0, workers=self.world, deepspeed=config)
        with resume.newest(job.home, self.rank, self.ranks.local_rank, self.world, self._say) as saved:
            if saved and saved.universal:
                config = config | {"checkpoint": {**config.get("checkpoint", {}), "load_universal": True}}
            self.engine = self._engine(config)
            if saved:
                saved.load(self.engine, self.rank, self.spec.seed)
                self._resume_at(saved.position)
        self.ledger = Ledger()
        self.metrics: dict[str, float] = {}
        self.batches = Batches(job.dataset, self.ranks.device, self.spec.seed, self.rank)
        self.saver = Saver(self.engine, job.home, self.spec.checkpoint, self.rank, self.reporter)
        self.steps = Steps(
            self.engine, self.task, self.batches, job.plan, self.ranks, advice=self._advice, push=self.reporter.push
        )
        self.progress = Progress(
            self.engine,
            self.task,
            job.plan,
            self.spec,
            self.ranks,
            reporter=self.reporter,
            seconds=self.position.seconds,
            advice=self._advice,
        )

    def _engine(self, config: dict[str, Any]) -> Any:
        engine = build_engine(
            self.spec.network, self.task, config, seed=self.spec.seed, rank=self.rank, on_cpu=self.ranks.on_cpu
        )
        hold(engine)
        return engine

    def _resume_at(self, before: Position) -> None:
        self.position = before.model_copy(update={"workers": self.world, "deepspeed": self.position.deepspeed})
        saved_by = f", made by {count_of_workers(before.workers)}" if before.workers != self.world else ""
        self._say(f"resumed from the checkpoint at step {before.step:,}{saved_by}, on {count_of_workers(self.world)}")

    def run(self) -> None:
        """Train to the end of the plan, or until the run ends early."""
        total, spec = self.job.plan.total_steps, self.spec
        if self.position.ended:
            return
        self.engine.train()
        feed = batches(
            self.job.dataset, self.job.plan, rank=self.rank, workers=self.world, start_step=self.position.step
        )
        poll_every, polled = spec.log_every_steps, (self.position.step, self.progress.seconds)
        for step in range(self.position.step + 1, total + 1):
            self._step(step, feed)
            ended = "every step is done" if step == total else ""
            saves, validates = step % spec.checkpoint.every_steps == 0, step % spec.validate_every == 0
            if ended or saves or validates or step % spec.log_every_steps == 0:
                self.progress.report(step)
                ended = ended or self._out_of_time()
            if self.job.may_leave and step % poll_every == 0 and not ended:
                if why := self._called_away():
                    self.progress.report(step)
                    self._leave(step, why)
                # A notice may come only half a minute ahead, so slow steps poll more often. All ranks share the clock.
                each = (self.progress.seconds - polled[1]) / (step - polled[0])
                poll_every = max(1, min(spec.log_every_steps, int(_POLL_SECONDS / each))) if each else poll_every
                polled = step, self.progress.seconds
            if validates and not ended:
                self._collect()
                self.position, ended = judge(self.position, spec.early_stopping)
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

    def _step(self, step: int, feed: Iterator[dict[str, np.ndarray]]) -> None:
        """Read this worker's rows of one optimizer step and take the step."""
        rows: dict[str, np.ndarray] = {}
        low, high = self.job.plan.share(step - 1, self.rank, self.world)
        window, waited = self.progress.window, time.perf_counter()
        if high > low:
            rows = next(feed)
            self.ledger += Ledger.of(rows[EPOCH], rows["index"])
        window.data_seconds += time.perf_counter() - waited
        window.losses += self.steps.take(step, rows, high - low)
        window.steps += 1

    # --- ending, and leaving

    def _out_of_time(self) -> str:
        limit = self.spec.max_minutes
        return f"max_minutes ({limit:g}) are over" if limit and self.progress.seconds >= 60 * limit else ""

    def _called_away(self) -> str:
        """Why all workers must save and leave, or an empty string. Every rank gets the same answer at the same step."""
        import ray
        import ray.train
        import torch

        asked = [
            ray.train.get_preemption_info() is not None,
            self.rank == 0 and ray.get(self.job.events.leaving.remote()),
        ]
        flags = torch.tensor(asked, dtype=torch.int32, device=self.ranks.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        preempted, resized = flags.tolist()
        return "a machine of this run is about to go" if preempted else "the workers are to be resized" * resized

    def _leave(self, step: int, why: str) -> None:
        """Save, and end this attempt as soon as every rank's part is in storage, so that no step is lost.

        Raises:
            RayActorError: as if the machine had gone already. Ray Train does not count that as a failure, and starts
                the workers again on the machines that stay.
        """
        import ray

        self._say(f"{why}: saving at step {step:,}")
        self._save(step, "", validate=False)
        self.saver.wait()
        if self.rank == 0:
            ray.get(self.job.events.set_leaving.remote(False))
        raise ray.exceptions.RayActorError(error_msg=why, preempted=True)

    # --- validation

    def _validate(self, step: int, *, final: bool = False) -> None:
        """Measure the validation split in the workers; at the end of a run all of it, and the test split."""
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        for split in ("validation", "test") if final else ("validation",):
            if self.job.dataset.meta.splits[split].rows:
                limit = None if final else self.spec.validation.max_rows
                measured = measure(self.engine, self.job.dataset, self.batches, self.ranks, split, limit)
                metrics |= {f"{split}/{name}": value for name, value in measured.items()}
        if metrics:
            took = {events.VALIDATION_SECONDS: time.perf_counter() - started}
            self.reporter.push(step, metrics | took, f"step {step:,}: {events.in_words(metrics)}")
        self.metrics = metrics
        self.position = self.position.model_copy(update={"unjudged": metrics.get("validation/loss")})
        self.progress.restart_window()

    def _collect(self) -> None:
        """Collect the last validation beside the training; wait for it if it is not finished."""
        import ray

        name = self.position.validating
        if not name:
            return
        started = time.perf_counter()
        self.saver.wait()
        metrics = {}
        if self.rank == 0 and self.job.validator:  # there may be no room for one any more
            try:
                metrics = ray.get(self.job.validator.measure.remote(name, self.job.events))
            except ray.exceptions.RayError as error:
                self._say(f"checkpoint {name} could not be validated: {str(error).strip().splitlines()[-1]}")
        metrics = from_first_rank(metrics)
        self.reporter.push(self.position.step, {events.VALIDATION_SECONDS: time.perf_counter() - started})
        self.position = self.position.model_copy(update={"validating": "", "unjudged": metrics.get("validation/loss")})
        self.progress.restart_window()

    # --- checkpoints

    def _save(self, step: int, ended: str, *, validate: bool) -> None:
        """Save a checkpoint; it is written to storage while the next steps are taken."""
        began = time.perf_counter()
        name = self.saver.next_name(step)
        metrics, self.metrics = self.metrics, {}
        validate = validate and bool(self.job.validator)
        standing = {"step": step, "metrics": metrics, "ended": ended, "seconds": self.progress.seconds}
        beside = {"validating": name} if validate else {}
        self.position = self.position.model_copy(update=standing | beside | self._counted_rows())
        self.saver.save(name, self.position, validate=validate, began=began)
        self.progress.restart_window()

    def _counted_rows(self) -> dict[str, int]:
        """The ledger of all workers since the run began."""
        import torch

        own, self.ledger = self.ledger, Ledger()
        # The sum wraps around at 2⁶⁴, as the ledger's does.
        sums = torch.from_numpy(np.array([own.rows, own.digest], np.uint64).view(np.int64)).to(self.ranks.device)
        torch.distributed.all_reduce(sums)
        rows, digest = (int(value) for value in sums.cpu().numpy().view(np.uint64))
        total = self.position.ledger + Ledger(rows, digest)
        return {"rows": total.rows, "digest": total.digest}

    # --- words

    def _advice(self) -> str:
        return advice(self.spec, self.engine.get_lr()[0])

    def _say(self, text: str) -> None:
        self.reporter.push(self.position.step, {}, text)
