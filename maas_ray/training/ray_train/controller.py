"""Callbacks in Ray Train's controller: they report restarts and resizes, and let workers save before a resize.

They run in the controller's process, where an exception would end the run.
"""

import time
from typing import Any

import ray
from ray.train.v2.api.exceptions import PreemptionError

from maas_ray.ray_private.core import draining_nodes
from maas_ray.ray_private.train import (
    ControllerCallback,
    DatasetsCallback,
    DefaultFailurePolicy,
    ElasticScalingPolicy,
    FailureDecision,
    NoopDecision,
    ReportCallback,
    ResizeDecision,
    TorchTrainer,
    WorkerHealthCheckFailedError,
    is_preempted_actor,
    state,
)
from maas_ray.training.events import Event
from maas_ray.training.hyperparameters import count_of_workers
from maas_ray.training.ray_train.failures import is_permanent, signatures
from maas_ray.training.worker.job import Job

_LEAVING_SECONDS = 120.0
_LONGEST = 300


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's trainer with two other policies, and without a process that it would start for datasets.

    An elastic run ignores machines that are gone or about to go: Ray Train would wait for room on such a machine, give
    up and retry, as long as the machine exists. And workers are not started again for an error that would return: a
    mistake in code or configuration, or the same error at the same step as before.
    Workers read their rows by themselves (see `feed`), so no process need divide datasets among them.
    """

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["callbacks"] = [one for one in arguments["callbacks"] if not isinstance(one, DatasetsCallback)]
        if self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = _StayingNodes(self.scaling_config)
        arguments["failure_policy"] = _WorthRetrying(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**arguments)


class _StayingNodes(ElasticScalingPolicy):  # type: ignore[misc]
    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if (
            isinstance(decision, ResizeDecision)
            and decision.num_workers < worker_group_state.num_workers
            and draining_nodes()
        ):
            return NoopDecision()  # the notice makes the workers leave; it says why and does not count as a failure
        return decision

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        staying = _staying()
        available = {node: resources for node, resources in reserved_resources.items() if node in staying}
        return int(super()._count_possible_workers(available))


class _WorthRetrying(DefaultFailurePolicy):  # type: ignore[misc]
    def __init__(self, failure_config: Any) -> None:
        super().__init__(failure_config)
        self._before: set[tuple[str, ...]] = set()

    def make_decision(self, training_failed_error: Any) -> Any:
        before, self._before = self._before, signatures(training_failed_error)
        gone = _is_gone(training_failed_error)
        if would_return(training_failed_error) or (not gone and before & self._before):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def would_return(error: Any) -> bool:
    """True if workers that are started again would fail in the same way.

    Args:
        error: Ray Train's, with the failure of each worker.
    """
    # If a process is gone, the other ranks may fail with any error.
    return not _is_gone(error) and any(is_permanent(failure) for failure in _failures(error))


def _is_gone(error: Any) -> bool:
    """True if a worker's process or its machine is gone."""
    return any(isinstance(each, WorkerHealthCheckFailedError) or is_preempted_actor(each) for each in _failures(error))


def _failures(error: Any) -> list[Any]:
    return list(getattr(error, "worker_failures", {}).values())


def _staying() -> set[str]:
    """Ids of the living nodes without a notice of preemption."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]} - draining_nodes()


class Attendant(ControllerCallback, ReportCallback):  # type: ignore[misc]
    """Reports what happens to all workers together, asks them to save, and starts validations.

    Args:
        job: the job that the workers are sent.
        each: resources of each worker.
    """

    def __init__(self, job: Job, each: dict[str, float]) -> None:
        self._events, self._validator, self._spec, self._each = job.events, job.validator, job.spec, each
        self._workers = 0
        self._waiting = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(current_state, state.RestartingState):
            self._say(f"{_cause(current_state.training_failed_error)}; starting the workers again")
            if self._room() < self._spec.min_workers:
                self._say_waiting()
        elif isinstance(current_state, state.ReschedulingState):
            self._say_waiting()
        elif isinstance(current_state, state.ResizingState):
            self._let_them_save()
        elif isinstance(current_state, state.RunningState):
            self._waiting = False

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        if self._workers and self._workers != resize_decision.num_workers:
            self._say(f"the number of workers changes from {self._workers} to {resize_decision.num_workers}")
        self._workers = resize_decision.num_workers

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
        if training_report.checkpoint:
            self._say(f"step {metrics[0]['step']:,}: checkpoint saved")
            if metrics[0]["validate"]:
                self._validator.measure.remote(metrics[0]["validate"], self._events)

    def _let_them_save(self) -> None:
        """Ask the workers to save and leave, and wait until they have, so that no step is lost."""
        deadline = time.monotonic() + _LEAVING_SECONDS
        try:
            ray.get(self._events.set_leaving.remote(True))
            while ray.get(self._events.leaving.remote()) and time.monotonic() < deadline:
                time.sleep(0.2)
            ray.get(self._events.set_leaving.remote(False))
        except ray.exceptions.RayError as error:
            self._say(f"the workers could not be asked to save ({error})")

    def _say_waiting(self) -> None:
        if not self._waiting:
            self._waiting = True
            if self._validator and self._spec.validation.place == "auto":
                ray.kill(self._validator)  # another training's workers or this one's may wait for its room
            each = ", ".join(f"{amount:g} {name}" for name, amount in self._each.items())
            free = ray.available_resources()
            now = ", ".join(f"{free.get(name, 0.0):g} {name}" for name in self._each)
            self._say(
                f"waiting for room for {count_of_workers(self._spec.min_workers)} of {each} each; free now: {now}. If "
                f"nothing else were running, the cluster would have room for {self._room()}. `maas status` shows what "
                "runs: undeploy something, let it end, or request fewer workers or less `cpus_per_worker`"
            )

    def _room(self) -> int:
        """Workers that fit on the staying machines, if nothing else ran on them."""
        staying = _staying()
        return sum(
            int(min(node["Resources"].get(name, 0.0) // amount for name, amount in self._each.items()))
            for node in ray.nodes()
            if node["NodeID"] in staying
        )

    def _say(self, text: str) -> None:
        self._events.push.remote(Event(step=0, text=text))


def _cause(error: Any) -> str:
    """The cause of a restart in one line, such as `worker 1 died (the process was killed)`."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if isinstance(error, PreemptionError) or any(is_preempted_actor(failure) for failure in failures.values()):
        return "a machine of this run was taken away"
    if not failures:
        return _last_line(error)
    # If one process is gone, those of the other ranks that waited for it fail as well.
    gone = {rank: failure for rank, failure in failures.items() if isinstance(failure, WorkerHealthCheckFailedError)}
    rank, failure = min((gone or failures).items())
    if gone:
        return f"worker {rank} died ({_last_line(gone[rank].health_check_failure)})"
    return f"worker {rank} failed ({type(failure).__name__}: {_last_line(failure)})"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    # Ray's message about a dead process has a long preamble and a list of common causes.
    return last.rpartition("Worker exit detail: ")[2].partition(" Some common causes")[0][:_LONGEST]
