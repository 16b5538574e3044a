"""`train`: one transaction from a prepared dataset to a registered version.

    name the run ─▶ Ray Train: workers, checkpoints ─▶ export ─▶ publish the bundle ─▶ register ─▶ alias

A run is named by its spec and dataset, so starting it again goes on where it stopped: finished training
is not repeated, a published bundle is found by its digest, a registered version is found by the bundle.
Killed anywhere, there is no version or a whole one.
"""

import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_ray import storage
from maas_ray.cluster import connect
from maas_ray.data.dataset import PreparedDataset, open_dataset
from maas_ray.errors import MaasError, StorageError, TrainingError
from maas_ray.registry.bundle import Bundle, BundleMeta, Lineage, publish_bundle
from maas_ray.registry.gates import judge
from maas_ray.registry.versions import TAG_TASK, ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.spec import digest_of
from maas_ray.tasks.network import type_of
from maas_ray.terminal.lines import progress, say
from maas_ray.training.checkpoint import Position, best, fetch, newest
from maas_ray.training.deepspeed_config import batch_geometry, check_with_deepspeed, resolve, zero_stage
from maas_ray.training.events import EventBuffer, Watcher, in_words
from maas_ray.training.export import export
from maas_ray.training.lineage import code_revision, package_versions
from maas_ray.training.loop import Job, train_worker, worker_environment
from maas_ray.training.model_card import model_card
from maas_ray.training.plan import Plan
from maas_ray.training.spec import TrainSpec, counted
from maas_ray.training.validation import Validator

TAG_RUN = "maas.run"
TAG_IDENTITY = "maas.identity"
TAG_PACKAGES = "maas.packages"
TAG_TOTAL_STEPS = "maas.total_steps"
TAG_REVISION = "mlflow.source.git.commit"
TAG_LANES = "maas.lanes"
# How often a run with a least and a most number of workers looks whether the cluster has room for more, seconds.
_RESIZE_SECONDS = 60.0
# What a run is called, how it is watched, and on what it runs, do not change what it computes.
_NOT_COMPUTED: dict[str, Any] = {
    **dict.fromkeys(("run", "alias", "gate", "dataset", "log_every_steps", "max_failures", "checkpoint"), True),
    **dict.fromkeys(("workers", "cpus_per_worker", "device", "micro_batch_size"), True),
    "network": {"gradient_checkpointing"},
    "validation": {"place"},
}


@dataclass(frozen=True)
class _Run:
    """A run that is about to start, or to go on."""

    name: str
    run_id: str
    tags: dict[str, str]
    spec: TrainSpec
    dataset: PreparedDataset
    settings: Settings
    registry: Registry

    @property
    def home(self) -> str:
        """URI of the run's directory: its checkpoints."""
        return storage.join(runs_home(self.settings, self.spec.model), self.name)


def train(spec: TrainSpec, *, settings: Settings | None = None) -> ModelVersion:
    """Train, export, register. Goes on where an earlier run of the same name stopped.

    Returns:
        The registered version.

    Raises:
        SpecError: the network cannot do the dataset's task.
        NotFoundError: there is no such dataset.
        NonFiniteLossError: the loss became NaN or infinite.
        TrainingError: the workers failed more often than `max_failures`.
    """
    settings = settings or Settings.from_environment()
    with spec.at("dataset"):
        dataset = open_dataset(settings, spec.dataset)
        dataset.check_unchanged()
    if not isinstance(spec.network, dataset.task.networks) and spec.network.own_source is None:
        known = ", ".join([*map(type_of, dataset.task.networks), "an import path `module:Name` of your own"])
        raise spec.refuse(
            "network.type", f"{spec.network.type!r} cannot do {dataset.task.spec.type}; choose one of {known}."
        )
    run = _open_run(spec, dataset, settings)
    plan = make_plan(spec, dataset, lanes=int(run.tags[TAG_LANES]))
    run.registry.client.set_tag(run.run_id, TAG_TOTAL_STEPS, str(plan.total_steps))
    done = _registered(run)
    if done:
        say(
            f"{done.reference} was trained from this very spec and data; reusing it. "
            "To train anew, give the run a name: --set run=NAME"
        )
        return _alias(run, done)
    say(
        f"training {spec.model} on {dataset.name}: {plan.total_steps:,} steps of {plan.batch_size} rows, "
        f"{_workers(spec)}, run {run.name}"
    )
    most = spec.most_workers
    with spec.at("deepspeed"):
        check_with_deepspeed(resolve(spec, workers=most, total_steps=plan.total_steps, hidden_size=None, on_cpu=False))
    if "activation_checkpointing" in spec.deepspeed:
        say(
            "deepspeed.activation_checkpointing changes nothing here: it is for networks that call DeepSpeed's own "
            "checkpoint function. Transformers' networks have `gradient_checkpointing: true` under `network`."
        )
    connect(settings)
    with _recorded(run):
        found = newest(run.home, lambda _: None)  # what is passed over, the workers say
        if found and found[1].ended:
            say(f"run {run.name} is trained to the end already")
        else:
            _fit(run, plan)
            found = newest(run.home, say)
        bundle, version = finish(run, plan, found)
    say(f"{version.reference} registered  {in_words(dict(sorted(version.metrics.items())))}\n  {bundle.uri}")
    return _alias(run, version)


def make_plan(spec: TrainSpec, dataset: PreparedDataset, *, lanes: int | None = None) -> Plan:
    """How the training split is dealt to steps and workers; `lanes` are those that the run began with."""
    batch_size = batch_geometry(spec, spec.most_workers)[0]
    of_units = spec.max_units and -(-spec.max_units // (batch_size * dataset.task.units_per_row))
    return Plan(
        sizes=dataset.group_sizes("train"),
        batch_size=batch_size,
        lanes=lanes or _lanes(batch_size, spec.most_workers),
        epochs=spec.epochs,
        seed=spec.seed,
        max_steps=min((limit for limit in (spec.max_steps, of_units) if limit), default=None),
    )


def _lanes(batch_size: int, workers: int) -> int:
    """One for each worker, where that divides the batch; else as many as do."""
    return next(lanes for lanes in range(min(workers, batch_size), 0, -1) if batch_size % lanes == 0)


def _open_run(spec: TrainSpec, dataset: PreparedDataset, settings: Settings) -> _Run:
    """The MLflow run of this name, made if there is none."""
    document = spec.model_dump(mode="json", exclude=_NOT_COMPUTED)
    batch_size = batch_geometry(spec, spec.most_workers)[0]
    own = {"source": spec.network.own_source.digest} if spec.network.own_source is not None else {}
    identity = digest_of({"spec": document, "batch_size": batch_size, "dataset": dataset.fingerprint, **own})
    name = spec.run or f"{spec.model}-{identity[:8]}"
    registry = Registry(settings)
    client = registry.client
    experiment = client.get_experiment_by_name(spec.model)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(spec.model)
    found = client.search_runs([experiment_id], f"tags.`{TAG_RUN}` = '{name}'", max_results=1)
    if found:
        run_id, tags = found[0].info.run_id, found[0].data.tags
        if tags.get(TAG_IDENTITY) != identity:
            raise spec.refuse(
                "run",
                f"{name!r} was started from another spec or dataset; give this one another name, or leave `run` out.",
            )
    else:
        tags = {
            TAG_RUN: name,
            TAG_TASK: dataset.task.spec.type,
            TAG_IDENTITY: identity,
            TAG_REVISION: code_revision(Path.cwd()),
            TAG_PACKAGES: json.dumps(package_versions()),
            TAG_LANES: str(_lanes(batch_size, spec.most_workers)),
            "maas.dataset": dataset.fingerprint,
        }
        run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
        for key, value in _parameters(spec.model_dump(mode="json", exclude={"run", "alias", "gate", "dataset"})):
            client.log_param(run_id, key, value)
    return _Run(name, run_id, tags, spec, dataset, settings, registry)


def _parameters(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _parameters(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _registered(run: _Run) -> ModelVersion | None:
    """The version that this run ended with, if it is registered; its bundle is whole then."""
    for version in run.registry.versions(run.spec.model):
        if version.lineage.run_id == run.run_id:
            version.open()
            return version
    return None


def _alias(run: _Run, version: ModelVersion) -> ModelVersion:
    alias = run.spec.alias
    if alias and alias not in version.aliases:
        verdicts = judge(run.registry, version, alias, run.spec.gate)
        for verdict in verdicts:
            say(str(verdict))
        if all(verdict.passed for verdict in verdicts):
            run.registry.set_alias(version, alias)
            say(f"{run.spec.model}@{alias} is now {version.reference}")
        else:
            say(f"{run.spec.model}@{alias} stays where it is; {version.reference} is registered without it")
    return run.registry.resolve(version.reference)


@contextmanager
def _recorded(run: _Run) -> Iterator[None]:
    """Keep MLflow's status of the run true."""
    client = run.registry.client
    client.update_run(run.run_id, status="RUNNING")
    try:
        yield
    except BaseException as error:
        client.set_terminated(run.run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    client.set_terminated(run.run_id, "FINISHED")


# --- training --------------------------------------------------------------------------------------


def _fit(run: _Run, plan: Plan) -> None:
    """Run the workers to the end."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    spec = run.spec
    use_gpu = _use_gpu(spec)
    needed, there = spec.least_workers * spec.cpus_per_worker, ray.cluster_resources().get("CPU", 0)
    if needed > there:
        say(
            f"waiting for CPUs: {spec.least_workers} workers need {needed:g}, the cluster has {there:g}. Unless it "
            "grows by itself, add nodes, or lower workers or cpus_per_worker."
        )
    # A fixed run that fits on the only machine is told of none; each idle process of Ray's wakes 100 times a second.
    each = {"CPU": spec.cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})
    total = ray.cluster_resources()
    fits = all(spec.most_workers * amount <= total.get(name, 0) for name, amount in each.items())
    elastic = spec.least_workers < spec.most_workers  # then the controller may ask them to, also on one machine
    may_leave = elastic or len(ray.nodes()) > 1 or not fits
    variables = {
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if may_leave else "0",
        # An elastic run takes fewer where there is no room for all: it need not wait a minute, as by default.
        **({"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"} if elastic else {}),
    }
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = ray.remote(num_cpus=0, scheduling_strategy=here)(EventBuffer).remote()
    job = Job(spec, run.dataset, plan, run.home, events, may_leave, _validator(run, each))
    with (
        tempfile.TemporaryDirectory(prefix="maas-ray-train-", ignore_cleanup_errors=True) as notes,
        _environment(variables),
        _interruptible(),
        _watched(run, events, plan.total_steps),
    ):
        try:
            result = _trainer(job, run.name, each, notes).fit()
        except ray.train.TrainingFailedError as error:
            raise _translated(error, run.name) from error
    if isinstance(result.return_value, MaasError):
        raise result.return_value


def _trainer(job: Job, name: str, each: dict[str, float], notes: str) -> Any:
    """Ray Train's trainer.

    Args:
        job: what the workers are told.
        name: the run's.
        each: what each worker reserves, by resource.
        notes: a directory of this machine for what Ray Train keeps for itself, a list of checkpoints. We do not need
            it, since manifests say which there are; beside the checkpoints, a write of it that fails would end the run
            without another try, and one that names a checkpoint deleted since would keep the run from starting again.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from maas_ray.training.controller import Attendant, Trainer

    spec, use_gpu = job.spec, "GPU" in each
    return Trainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=spec.workers,  # two of them: Ray Train's elastic scaling
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


def _runtime_env(spec: TrainSpec, use_gpu: bool) -> dict[str, Any]:
    return {"env_vars": worker_environment(on_cpu=not use_gpu, threads=max(1, int(spec.cpus_per_worker)))}


def _validator(run: _Run, each: dict[str, float]) -> Any:
    """The actor that measures checkpoints beside the training. None: it is not wanted, or there is no room for it.

    It takes as much as a worker: `each`, by resource.
    """
    import ray

    spec = run.spec
    if spec.validation.place == "workers" or not run.dataset.split("validation").rows:
        return None
    there = ray.cluster_resources()
    short = [name for name, amount in each.items() if there.get(name, 0) < amount * (spec.most_workers + 1)]
    if spec.validation.place == "auto":
        if short or zero_stage(spec.deepspeed) == 3 or not spec.checkpoint_for_each_validation:
            return None
    elif short:
        say(
            f"too few {' and '.join(f'{name}s' for name in short)} for validation beside {_workers(spec)}: it needs as "
            "much as one worker more, and training will wait for it. Add nodes, lower workers, or write "
            "validation.place: workers."
        )
    actor = ray.remote(
        num_cpus=each["CPU"],
        num_gpus=each.get("GPU", 0),
        max_restarts=-1,
        max_task_retries=2,
        runtime_env=_runtime_env(spec, "GPU" in each),
    )(Validator)
    batch_size = batch_geometry(spec, spec.most_workers)[1]
    return actor.remote(spec, run.dataset, run.home, batch_size, "GPU" in each)


def runs_home(settings: Settings, model: str) -> str:
    """The directory of all training runs of a model, each with its checkpoints."""
    return storage.join(settings.storage, "runs", model)


def _workers(spec: TrainSpec) -> str:
    if spec.least_workers < spec.most_workers:
        return f"{spec.least_workers} to {spec.most_workers} workers"
    return counted(spec.most_workers)


def _use_gpu(spec: TrainSpec) -> bool:
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if spec.device == "gpu" and gpus < spec.least_workers:
        say(f"waiting for GPUs: {spec.least_workers} are needed, the cluster has {gpus}")
    if spec.device == "auto":
        return gpus >= spec.least_workers
    return spec.device == "gpu"


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set the variables that are not set while the block runs."""
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C, as anybody expects it: Ray Train takes the signal, ends the workers, and would exit with 0.

    In a terminal and in a job, SIGTERM comes here as Ctrl-C.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _watched(run: _Run, events: Any, total_steps: int) -> Iterator[None]:
    """Show and log events while the block runs; none is lost at its end."""
    import ray

    stop = threading.Event()
    with progress("training", total_steps) as shown:
        watcher = Watcher(shown, run.registry.client, run.run_id, run.dataset.task.unit)

        def watch() -> None:
            while not stop.wait(1.0):
                watcher.handle(ray.get(events.drain.remote()))

        thread = threading.Thread(target=watch, name="maas-train-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            watcher.handle(ray.get(events.drain.remote()))


def _translated(error: Any, run: str) -> MaasError:
    """Ray Train's error as ours: the worker's own words first, not the traceback."""
    failures = sorted(getattr(error, "worker_failures", {}).items())
    # A worker that fails takes others with it: its own words, not those of their lost connections.
    for cause in (_ours(failure) for _, failure in failures):
        if type(cause) is StorageError:
            return StorageError(
                f"{cause}\nThe run {run} had no restarts left. Once storage is back, starting it again goes on from "
                "its last checkpoint. To ride out longer outages raise checkpoint.retry_seconds or max_failures."
            )
        if cause is not None:
            return cause
    for rank, failure in failures:
        raised = getattr(failure, "_base_exc", failure)  # Ray Train's wrapper adds the traceback
        last = f"{type(raised).__name__}: {raised}"
        return TrainingError(
            f"worker {rank} failed and the run {run} had no restarts left: {last}\n"
            "Starting it again goes on from its last checkpoint. With --verbose the whole traceback is shown."
        )
    return TrainingError(f"run {run} failed: {error}")


def _ours(failure: Any) -> MaasError | None:
    """The error of this platform in a chain of causes."""
    while failure is not None and not isinstance(failure, MaasError):
        failure = getattr(failure, "cause", None) or failure.__cause__
    return failure


# --- the end of a run ------------------------------------------------------------------------------


def finish(run: _Run, plan: Plan, last: tuple[str, Position] | None) -> tuple[Bundle, ModelVersion]:
    """From the last checkpoint to a registered version; every step is the same when done again.

    Args:
        run: the run.
        plan: what it was to train on.
        last: its newest whole checkpoint. None: there is none.

    Raises:
        TrainingError: the last checkpoint is gone or damaged, or a row was left out or trained on twice.
    """
    uri, position = _chosen(run, last)
    _check_ledger(run, plan, position)
    with tempfile.TemporaryDirectory(prefix="maas-export-") as scratch:
        source = fetch(uri, Path(scratch) / "saved")
        say("consolidating shards and publishing the bundle")
        directory = Path(scratch) / "bundle"
        directory.mkdir()
        export(source, run.dataset, run.spec.network, directory)
        meta = _bundle_meta(run, position)
        rows = {name: split.rows for name, split in run.dataset.meta.splits.items()}
        card = model_card(meta, run.dataset.task, parameters=_parameters_in(directory), rows=rows)
        (directory / "README.md").write_text(card, encoding="utf-8")
        bundle = publish_bundle(run.settings, directory, meta, run.spec.checkpoint.retry_seconds, say)
    version = run.registry.register(bundle, run_id=run.run_id)
    return bundle, version


def _chosen(run: _Run, found: tuple[str, Position] | None) -> tuple[str, Position]:
    """The checkpoint that becomes the version."""
    if found is None or not found[1].ended:
        raise TrainingError(
            f"run {run.name} has trained to the end, but its last checkpoint is not whole. Start it again: it goes on "
            f"from {f'step {found[1].step:,}' if found else 'the beginning'}."
        )
    lowest = best(run.home) if run.spec.checkpoint.select == "best" else None
    if lowest and lowest[0] != found[0]:
        say(f"the lowest validation loss was at step {lowest[1].step:,}; that is what is exported")
    return lowest or found


def _check_ledger(run: _Run, plan: Plan, position: Position) -> None:
    """Every row of every epoch once, and no other."""
    due = plan.ledger_at(position.step)
    if position.ledger != due:
        raise TrainingError(
            f"run {run.name} has trained on {position.rows:,} rows, and not on the {due.rows:,} that {position.step:,} "
            "steps take, each once (the ledger differs from the plan). This is a bug; no version was registered."
        )
    say(f"{position.rows:,} rows trained on, each of them once in an epoch (ledger {position.digest:016x})")


def _bundle_meta(run: _Run, position: Position) -> BundleMeta:
    lineage = Lineage(
        dataset=run.dataset.name,
        dataset_fingerprint=run.dataset.fingerprint,
        dataset_uri=run.dataset.uri,
        measured_rows=_measured_rows(run, position),
        run=run.name,
        run_id=run.run_id,
        # Of when the run began, so that a second try to end it publishes the same bundle.
        code_revision=run.tags[TAG_REVISION],
        packages=json.loads(run.tags[TAG_PACKAGES]),
        spec=run.spec.document(),
        deepspeed=position.deepspeed,
    )
    return BundleMeta(name=run.spec.model, task=run.dataset.task.spec.type, metrics=position.metrics, lineage=lineage)


def _measured_rows(run: _Run, position: Position) -> dict[str, int]:
    """Of each split that was measured at a checkpoint, how many rows: where the run ends all, else the first ones."""
    most = None if position.ended else run.spec.validation.max_rows
    splits = {name.partition("/")[0]: run.dataset.split(name.partition("/")[0]).rows for name in position.metrics}
    return {split: min(rows, most or rows) for split, rows in splits.items()}


def _parameters_in(directory: Path) -> int:
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as weights:
            total += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total
