"""Saving checkpoints from the workers: copied in the step, written to storage beside the training."""

import time
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

from maas_ray import storage
from maas_ray.errors import NotFoundError, StorageError
from maas_ray.training import events
from maas_ray.training.checkpoints import catalog, layout, snapshot
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.checkpoints.spec import CheckpointSpec
from maas_ray.training.collectives import barrier, from_first_rank
from maas_ray.training.worker.report import Reporter


class Saver:
    """Saves checkpoints, one at a time.

    Args:
        engine: DeepSpeed's.
        home: URI of the run's directory.
        spec: how long writes are retried, and how many checkpoints are kept.
        rank: this worker's.
        reporter: takes metrics and complaints.
        resumed: the checkpoint that this attempt resumed from. Empty: it began anew.
        damaged: checkpoints that it found to be damaged.
    """

    def __init__(
        self,
        engine: Any,
        home: str,
        spec: CheckpointSpec,
        rank: int,
        reporter: Reporter,
        *,
        resumed: str = "",
        damaged: Collection[str] = (),
    ) -> None:
        self._engine, self._home, self._spec, self._rank, self._reporter = engine, home, spec, rank, reporter
        self._trusted, self._damaged = [resumed], damaged
        self._writing: Future[None] | None = None

    def next_name(self, step: int) -> str:
        """The name of the next checkpoint, after the previous one is in storage. All ranks call it together.

        Raises:
            StorageError: the previous one could not be written. No step is made on top of two unsaved intervals.
        """
        if self._writing is not None:
            self._writing.result()
        return str(from_first_rank(layout.name_of(step, layout.new_attempt())))

    def save(self, name: str, position: Position, *, validate: bool, began: float) -> None:
        """Copy the state to host memory, and report the checkpoint to Ray Train, which writes it in a thread.

        Args:
            name: the checkpoint's.
            position: the run's position.
            validate: True if the checkpoint is to be validated beside the training.
            began: when the training stopped for this checkpoint, by `time.perf_counter`.
        """
        import ray.train
        from ray.train import Checkpoint, CheckpointUploadMode

        state = snapshot.take(self._engine, self._rank, position)
        stalled = time.perf_counter() - began
        storage_context = ray.train.get_context().get_storage()
        self._writing = done = Future[None]()

        def at(name: str) -> Checkpoint:  # for Ray Train's records; it neither reads nor writes there
            return Checkpoint(f"{storage_context.experiment_fs_path}/{name}", storage_context.storage_filesystem)

        def write(_: Checkpoint, name: str) -> Checkpoint:
            started = time.perf_counter()
            try:
                complain = self._complaints(position.step)
                state.write(storage.join(self._home, name), self._spec.retry_seconds, complain)
                self._trusted.append(storage.join(self._home, name))
                if self._rank == 0:
                    self._prune(position)
            except BaseException as error:
                done.set_exception(error)
                raise
            done.set_result(None)
            self._reporter.push(position.step, {events.CHECKPOINT_WRITE_SECONDS: time.perf_counter() - started})
            return at(name)

        ray.train.report(
            {"step": position.step, "validate": name if validate else "", **position.metrics},
            checkpoint=at(name),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=write,
        )
        self._reporter.push(position.step, {events.CHECKPOINT_SECONDS: stalled})

    def wait(self) -> None:
        """Return when every worker's part of the last checkpoint is in storage."""
        if self._writing is not None:
            self._writing.result()
        barrier()

    def _prune(self, position: Position) -> None:
        """Delete old checkpoints. A failure is retried with the next checkpoint, since the new one is saved."""
        try:
            catalog.prune(
                self._home,
                self._spec.keep,
                trusted=self._trusted,
                damaged=self._damaged,
                validating=position.validating,
            )
        except (StorageError, NotFoundError) as error:
            text = f"old checkpoints could not be deleted ({error}); trying again with the next one"
            self._reporter.push(position.step, {}, text)

    def _complaints(self, step: int) -> Any:
        return lambda text: self._reporter.push_own(step, text)
