"""Launching the workers of a run through Ray Train, and the actors beside them."""

import tempfile
from typing import Any

from maas_ray.errors import MaasError
from maas_ray.terminal.lines import say
from maas_ray.training.checkpoints.shared import probe
from maas_ray.training.deepspeed.batch import batch_geometry
from maas_ray.training.deepspeed.document import zero_stage
from maas_ray.training.events import EventBuffer
from maas_ray.training.hyperparameters import WorkerSpec, count_of_workers
from maas_ray.training.plan import Plan
from maas_ray.training.ray_train.failures import translated
from maas_ray.training.ray_train.process import environment, interruptible, watched
from maas_ray.training.runs.record import TrainingRun
from maas_ray.training.validation.validator import Validator
from maas_ray.training.worker.entry import train_worker
from maas_ray.training.worker.job import Job, worker_environment

Resources = dict[str, float]
"""Amounts that each worker reserves, by Ray's name of the resource."""

_RESIZE_SECONDS = 60.0
"""How often an elastic run looks for room for more workers."""


def fit(run: TrainingRun, plan: Plan) -> None:
    """Run the workers to the end of the plan.

    Raises:
        TrainingError: the workers failed more often than `max_failures`.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    spec = run.spec
    each = _resources(spec)
    may_leave, variables = _elasticity(spec, each)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = ray.remote(num_cpus=0, scheduling_strategy=here)(EventBuffer).remote()
    with (
        probe(run.home, spec.checkpoint.retry_seconds, say) as shared,
        tempfile.TemporaryDirectory(prefix="maas-ray-train-", ignore_cleanup_errors=True) as notes,
        environment(variables),
        interruptible(),
        watched(run, events, plan.total_steps),
    ):
        try:
            job = Job(spec, run.dataset, plan, run.home, events, may_leave, _validator(run, each), run.identity, shared)
            result = _trainer(job, run.name, each, notes).fit()
        except ray.train.TrainingFailedError as error:
            raise translated(error, run.name) from error
    if isinstance(result.return_value, MaasError):
        raise result.return_value


def workers_in_words(spec: WorkerSpec) -> str:
    """The number of workers: `1 worker`, `2 to 8 workers`."""
    if spec.min_workers < spec.max_workers:
        return f"{spec.min_workers} to {spec.max_workers} workers"
    return count_of_workers(spec.max_workers)


def _resources(spec: WorkerSpec) -> Resources:
    """Resources of each worker; prints a line if the cluster does not have enough of them now."""
    import ray

    use_gpu = uses_gpus(spec)
    if use_gpu and (gpus := _gpus()) < spec.min_workers:
        say(f"waiting for GPUs: {spec.min_workers} are needed, the cluster has {gpus}")
    needed, available = spec.min_workers * spec.cpus_per_worker, ray.cluster_resources().get("CPU", 0)
    if needed > available:
        say(
            f"waiting for CPUs: {spec.min_workers} workers need {needed:g}, the cluster has {available:g}. Unless it "
            "grows by itself, add nodes, or lower workers or cpus_per_worker."
        )
    return {"CPU": spec.cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})


def uses_gpus(spec: WorkerSpec) -> bool:
    """True if the workers get GPUs on the cluster that this process is connected to."""
    return spec.device == "gpu" or (spec.device == "auto" and _gpus() >= spec.min_workers)


def _gpus() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def _elasticity(spec: WorkerSpec, each: Resources) -> tuple[bool, dict[str, str]]:
    """True if the workers may be asked to leave, and Ray Train's environment variables for that."""
    import ray

    total = ray.cluster_resources()
    fits = all(spec.max_workers * amount <= total.get(name, 0) for name, amount in each.items())
    elastic = spec.min_workers < spec.max_workers  # the controller may resize it, on one machine too
    # A fixed run that fits on the only machine needs no watcher: each of Ray's idle processes wakes 100 times a second.
    may_leave = elastic or len(ray.nodes()) > 1 or not fits
    variables = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if may_leave else "0"}
    variables["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "1"  # half of Ray Train's, and so is the time to notice a failure
    if elastic:
        # An elastic run starts with fewer workers if there is no room for all. By default it would wait a minute first.
        variables["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"
    return may_leave, variables


def _trainer(job: Job, name: str, each: Resources, notes: str) -> Any:
    """Ray Train's trainer.

    Args:
        job: what the workers are sent.
        name: the run's.
        each: resources of each worker.
        notes: a directory of this machine for Ray Train's own list of checkpoints. It is not needed, because manifests
            say which checkpoints exist. It does not lie beside the checkpoints: a failed write of it would end the run
            without another attempt, and a list that names a deleted checkpoint would prevent the next start.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from maas_ray.training.ray_train.controller import Attendant, Trainer

    spec, use_gpu = job.spec, "GPU" in each
    return Trainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=spec.workers,  # a pair of numbers is Ray Train's elastic scaling
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
            use_gpu=use_gpu,
            resources_per_worker=each,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=notes,
            failure_config=FailureConfig(max_failures=spec.max_failures),
            callbacks=[Attendant(job, each)],
            worker_runtime_env=_runtime_env(spec, use_gpu),
        ),
    )


def _runtime_env(spec: WorkerSpec, use_gpu: bool) -> dict[str, Any]:
    return {"env_vars": worker_environment(on_cpu=not use_gpu, threads=spec.threads)}


def _validator(run: TrainingRun, each: Resources) -> Any:
    """The actor that measures checkpoints beside the training, with the resources of one worker.

    None: it is not wanted, or there is no room for it.
    """
    import ray

    spec, gpu = run.spec, "GPU" in each
    if spec.validation.place == "workers" or not run.dataset.split("validation").rows:
        return None
    total = ray.cluster_resources()
    short = [name for name, amount in each.items() if total.get(name, 0) < amount * (spec.max_workers + 1)]
    if spec.validation.place == "auto":
        if short or zero_stage(spec.deepspeed) == 3 or not spec.checkpoint_for_each_validation:
            return None
    elif short:
        say(
            f"too few {' and '.join(f'{name}s' for name in short)} for validation beside {workers_in_words(spec)}: it "
            "needs as much as one more worker, and training will wait for it. Add nodes, lower workers, or write "
            "validation.place: workers."
        )
    actor = ray.remote(
        num_cpus=each["CPU"],
        num_gpus=each.get("GPU", 0),
        max_restarts=-1,
        max_task_retries=2,
        runtime_env=_runtime_env(spec, gpu),
    )(Validator)
    return actor.remote(
        spec.network,
        run.dataset,
        run.home,
        batch_size=batch_geometry(spec, spec.max_workers).micro_batch,
        max_rows=spec.validation.max_rows,
        threads=spec.threads,
        gpu=gpu,
    )
