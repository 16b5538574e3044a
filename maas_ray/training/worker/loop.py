"""The training loop of a worker: the order of steps, reports, validations and checkpoints.

It knows nothing of registries and bundles: it ends with a checkpoint whose position says that the run is complete.
"""

import math
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from maas_ray import storage
from maas_ray.errors import NonFiniteLossError, TrainingError
from maas_ray.training import events
from maas_ray.training.checkpoints import catalog, resume
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.checkpoints.shared import prove
from maas_ray.training.checkpoints.snapshot import hold
from maas_ray.training.collectives import barrier, from_first_rank, share_buffers
from maas_ray.training.deepspeed.engine import build_engine, weights_are_finite
from maas_ray.training.deepspeed.resolve import as_before, resolve
from maas_ray.training.deepspeed.schedule import begin_schedule, continue_schedule
from maas_ray.training.feed import EPOCH, batches
from maas_ray.training.hyperparameters import count_of_workers
from maas_ray.training.plan import Ledger
from maas_ray.training.validation.early_stopping import judge
from maas_ray.training.validation.validator import runs
from maas_ray.training.worker.advice import advice
from maas_ray.training.worker.ahead import Ahead
from maas_ray.training.worker.batches import Batches, Pass
from maas_ray.training.worker.job import Job, Rank
from maas_ray.training.worker.measure import measure
from maas_ray.training.worker.rehearsal import rehearse
from maas_ray.training.worker.report import Progress, Reporter
from maas_ray.training.worker.saving import Saver
from maas_ray.training.worker.step import Steps
from maas_ray.training.worker.unsaved import Unsaved

_POLL_SECONDS = 5.0


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
        self.position = Position(
            step=0, workers=self.world, order=job.order, identity=job.identity, deepspeed=config, spares=True
        )
        self.step = 0  # the one that was begun last
        self.resumed, self.damaged = "", list[str]()
        if job.probe:
            prove(job.probe, self.rank)
        while not self._start(config):
            pass
        self.ledger, self.left_out = Ledger(), Ledger()
        self.batches = Batches(job.dataset, self.ranks.device, self.spec.seed, self.rank)
        self.validator = self._validator()
        self.unsaved = Unsaved(self.engine, job, self.batches, self.ranks)
        self.saver = Saver(
            self.engine,
            job.home,
            self.spec.checkpoint,
            self.rank,
            self.reporter,
            resumed=self.resumed,
            damaged=self.damaged,
        )
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

    def _engine(self, config: dict[str, Any], *, spare: bool) -> Any:
        spec, on_cpu = self.spec, self.ranks.on_cpu
        engine = build_engine(
            spec.network, self.task, config, seed=spec.seed, rank=self.rank, on_cpu=on_cpu, spare=spare
        )
        hold(engine)
        return engine

    def _start(self, config: dict[str, Any]) -> bool:
        """Build the engine and resume from the newest whole checkpoint, if there is one.

        A checkpoint whose weights are not finite is deleted, since no run can go on from it.

        Returns:
            False if that was so, and the checkpoint before is to be tried.
        """
        with resume.newest(
            self.job.home, self.rank, self.ranks.local_rank, self.world, self._say, self.damaged
        ) as saved:
            if saved:
                config = as_before(config, saved.position.deepspeed)
                self.position = self.position.model_copy(update={"deepspeed": config})
            if saved and saved.universal:
                config = config | {"checkpoint": {**config.get("checkpoint", {}), "load_universal": True}}
            self.engine = self._engine(config, spare=saved.position.spares if saved else self.position.spares)
            if not saved:
                self.position = self.position.model_copy(update={"schedule_lead": begin_schedule(self.engine)})
                return True
            saved.load(self.engine, self.rank, self.spec.seed)
            if self._finite():
                continue_schedule(self.engine, saved.position.schedule_lead)
                self._resume_at(saved.position)
                self.resumed = saved.uri
                return True
        self._say(catalog.skipped(f"checkpoint {saved.uri} holds weights that are not finite, and is deleted"))
        if self.rank == 0:
            storage.delete(saved.uri)
        barrier()
        return False

    def _resume_at(self, before: Position) -> None:
        start = self.position
        if before.order not in (None, start.order):
            raise TrainingError(
                f"the checkpoint at step {before.step:,} has the order of rows {before.order}, but this run has "
                f"{start.order}. Choose another name for the run.",
                code="run_differs",
            )
        ours = {"workers": self.world, "deepspeed": start.deepspeed, "order": start.order, "identity": start.identity}
        self.position = before.model_copy(update=ours)
        saved_by = f", made by {count_of_workers(before.workers)}" if before.workers != self.world else ""
        self._say(f"resumed from the checkpoint at step {before.step:,}{saved_by}, on {count_of_workers(self.world)}")

    def run(self) -> None:
        """Train to the end of the plan, or until the run ends early."""
        if self.position.ended:
            return
        if not self.position.step:
            rehearse(self.engine, self.job, self.batches, self.ranks, self.position)
            self.progress.restart_window()
        self.engine.train()
        with Ahead(self._passes()) as passes:
            self._train(passes)

    def _passes(self) -> Iterator[Pass]:
        """The worker's passes from here to the end of the plan."""
        plan, done = self.job.plan, self.position.step
        feed = batches(self.job.dataset, plan, rank=self.rank, workers=self.world, start_step=done)
        micro_batch = self.engine.train_micro_batch_size_per_gpu()
        return self.batches.passes(feed, plan, first=done + 1, world=self.world, micro_batch=micro_batch)

    def _train(self, passes: Ahead[Pass]) -> None:
        """Take steps, and report, validate and save between them, to the end of the plan or an early one."""
        total, spec = self.job.plan.total_steps, self.spec
        poll_every, polled = spec.log_every_steps, (self.position.step, self.progress.seconds)
        first = self.position.step + 1
        for step in range(first, total + 1):
            self.step = step
            self._step(step, passes)
            if step == first:
                self.unsaved.check()
                self.progress.restart_window()
            ended = "every step is done" if step == total else ""
            saves, validates = spec.saves_at(step), step % spec.validate_every == 0
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
            metrics: dict[str, float] = {}
            if ended:
                metrics = self._validate(step, final=True)
                self._collect()
            elif validates and not self.validator:
                metrics = self._validate(step)
            if ended or saves:
                self._save(step, ended, metrics, validate=validates and not ended)
            if ended:
                if step < total:
                    self._say(f"ended at step {step:,}: {ended}")
                return

    def _step(self, step: int, passes: Ahead[Pass]) -> None:
        """Take one optimizer step over this worker's rows of it."""
        low, high = self.job.plan.share(step - 1, self.rank, self.world)
        window, waited = self.progress.window, passes.waited
        first = next(passes)
        rows, prepared = first.rows, chain([first.batch], (one.batch for one in passes))
        taken = self.steps.take(step, rows, high - low, prepared)
        window.data_seconds += passes.waited - waited
        window.losses += taken.losses
        window.learning_rate = taken.learning_rate
        window.steps += 1
        ledger = Ledger.of(rows[EPOCH], rows["index"]) if rows else Ledger()
        if taken.applied:
            self.ledger += ledger
        else:
            self.left_out += ledger
            self._say_left_out(step)

    def _say_left_out(self, step: int) -> None:
        """Count a step whose gradients were not finite."""
        steps = self.position.left_out_steps + 1
        self.position = self.position.model_copy(update={"left_out_steps": steps})
        rows = self.job.plan.rows_in(step - 1)
        text = f"step {step:,}: gradients are not finite; the step is left out with its {rows:,} rows"
        self.reporter.push(step, {events.LEFT_OUT_STEPS: float(steps)}, text)

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
        self._save(step, "", {}, validate=False)
        self.saver.wait()
        if self.rank == 0:
            ray.get(self.job.events.set_leaving.remote(False))
        raise ray.exceptions.RayActorError(error_msg=why, preempted=True)

    # --- validation

    def _validate(self, step: int, *, final: bool = False) -> dict[str, float]:
        """Metrics of the validation split, measured in the workers; at the end of a run those of `test` too."""
        started = time.perf_counter()
        share_buffers(self.engine.module)
        metrics: dict[str, float] = {}
        losses: dict[str, float] = {}
        max_rows = self.spec.validation.max_rows
        limit = self.spec.validation.max_rows_at_end if final else max_rows
        for split in ("validation", "test") if final else ("validation",):
            if self.job.dataset.meta.splits[split].rows:
                measured = measure(
                    self.engine, self.job.dataset, self.batches, self.ranks, split, limit, first=max_rows
                )
                metrics |= {f"{split}/{name}": value for name, value in measured.metrics.items()}
                losses[split] = measured.first_loss
        if metrics:
            took = {events.VALIDATION_SECONDS: time.perf_counter() - started}
            self.reporter.push(step, metrics | took, f"step {step:,}: {events.in_words(metrics)}")
        loss = losses.get("validation")
        self.position = self.position.model_copy(update={"unjudged": loss, "comparable_loss": loss})
        self.progress.restart_window()
        return metrics

    def _validator(self) -> Any:
        """The actor that measures beside the training. None, on every rank alike: there is none, or no room for it."""
        validator = self.job.validator
        if not validator or self.spec.validation.place == "beside":
            return validator
        if from_first_rank(self.rank == 0 and runs(validator)):
            return validator
        self._say("the cluster has no room for validation beside the training; the workers validate")
        return None

    def _collect(self) -> None:
        """Collect the last validation beside the training; wait for it if it is not finished."""
        import ray

        name = self.position.validating
        if not name:
            return
        started = time.perf_counter()
        self.saver.wait()
        metrics = {}
        if self.rank == 0 and self.validator:  # there may be no room for one any more
            try:
                metrics = ray.get(self.job.validator.measure.remote(name, self.job.events))
            except ray.exceptions.RayError as error:
                self._say(f"checkpoint {name} could not be validated: {str(error).strip().splitlines()[-1]}")
        metrics = from_first_rank(metrics)
        self.reporter.push(self.position.step, {events.VALIDATION_SECONDS: time.perf_counter() - started})
        self.position = self.position.model_copy(update={"validating": "", "unjudged": metrics.get("validation/loss")})
        self.progress.restart_window()

    # --- checkpoints

    def _save(self, step: int, ended: str, metrics: dict[str, float], *, validate: bool) -> None:
        """Save a checkpoint; it is written to storage while the next steps are taken.

        Args:
            step: the step that was taken last.
            ended: why the run ends here. Empty: it goes on.
            metrics: measured at this very step. Empty: none were.
            validate: True if the checkpoint is to be validated beside the training.

        Raises:
            NonFiniteLossError: weights are not finite, so that no run could go on from them; on every rank alike.
            PreflightError: training has changed what a version would not hold.
        """
        began = time.perf_counter()
        if not self._finite():
            raise NonFiniteLossError(step, math.nan, self._advice(), of="largest weight")
        if ended and self.position.left_out_steps == step:
            raise NonFiniteLossError(step, math.inf, self._advice(), of="gradient norm")
        share_buffers(self.engine.module)
        self.unsaved.check()
        name = self.saver.next_name(step)
        validate = validate and bool(self.validator)
        comparable = self.position.comparable_loss if metrics else None
        standing = {"step": step, "metrics": metrics, "comparable_loss": comparable, "ended": ended}
        standing |= {"seconds": self.progress.seconds}
        beside = {"validating": name} if validate else {}
        self.position = self.position.model_copy(update=standing | beside | self._counted_rows())
        self.saver.save(name, self.position, validate=validate, began=began)
        self.progress.restart_window()

    def _counted_rows(self) -> dict[str, int]:
        """The ledgers of all workers since the run began: rows that were trained on, and rows that were left out."""
        import torch

        own = self.ledger, self.left_out
        self.ledger, self.left_out = Ledger(), Ledger()
        # The sum wraps around at 2⁶⁴, as the ledger's does.
        numbers = np.array([[ledger.rows, ledger.digest] for ledger in own], np.uint64)
        sums = torch.from_numpy(numbers.view(np.int64)).to(self.ranks.device)
        torch.distributed.all_reduce(sums)
        trained, left_out = (Ledger(int(rows), int(digest)) for rows, digest in sums.cpu().numpy().view(np.uint64))
        trained, left_out = self.position.ledger + trained, self.position.left_out + left_out
        return {
            "rows": trained.rows,
            "digest": trained.digest,
            "left_out_rows": left_out.rows,
            "left_out_digest": left_out.digest,
        }

    def _finite(self) -> bool:
        """True if the trained weights on all ranks are finite."""
        import torch

        flag = torch.tensor([weights_are_finite(self.engine)], dtype=torch.int32, device=self.ranks.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag.item())

    # --- words

    def _advice(self) -> str:
        return advice(self.spec, self.progress.window.learning_rate or self.engine.get_lr()[0])

    def _say(self, text: str) -> None:
        self.reporter.push(self.position.step, {}, text)
