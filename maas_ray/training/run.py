"""`train`: one transaction from a prepared dataset to a registered version.

    name the run ─▶ Ray Train: workers, checkpoints ─▶ export ─▶ publish the bundle ─▶ register ─▶ alias

A run is named by its spec and its dataset, and every stage is idempotent. The same `train` again resumes where it
stopped: finished training is not repeated, a published bundle is recognised by its digest, a registered version by
its bundle. If it is killed anywhere, there is either no version or a whole one.
"""

from functools import partial

from maas_ray import storage
from maas_ray.cluster import connect
from maas_ray.database.leases import Lease
from maas_ray.registry.bundle import bundle_home
from maas_ray.registry.gates import judge
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.terminal.lines import say
from maas_ray.training.checkpoints.catalog import latest, newest
from maas_ray.training.events import in_words
from maas_ray.training.finish import finish
from maas_ray.training.preflight import (
    check_deepspeed,
    check_network,
    check_without_gpus,
    make_plan,
    open_for,
    with_defaults,
)
from maas_ray.training.ray_train.launch import fit, uses_gpus, workers_in_words
from maas_ray.training.runs.alone import alone
from maas_ray.training.runs.record import TAG_RUN, RunKey, TrainingRun, open_run, version_of
from maas_ray.training.spec import TrainSpec


def train(spec: TrainSpec, *, settings: Settings | None = None) -> ModelVersion:
    """Train, export and register; resumes where an earlier run of the same name stopped.

    Returns:
        The registered version.

    Raises:
        SpecError: the network does not support the dataset's task.
        NotFoundError: the dataset does not exist.
        NonFiniteLossError: the loss became NaN or infinite.
        TrainingError: the workers failed more often than `max_failures`.
    """
    settings = settings or Settings.from_environment()
    dataset = open_for(spec, settings)
    spec = with_defaults(spec, dataset)
    key, registry = RunKey.of(spec, dataset), Registry(settings)
    found = key.find(spec, registry)
    version = version_of(registry, spec, found.info.run_id) if found else None
    if version is None or version.due:
        with alone(settings, spec.model, found.data.tags[TAG_RUN] if found else key.name) as lease:
            run = open_run(spec, dataset, settings, key=key)
            version = run.version()  # the process that this one waited for may have finished the run
            if version is None:
                return _train(run, lease)
            if version.due:
                return _move_alias(registry, spec, version)
    return _reused(registry, spec, version)


def _reused(registry: Registry, spec: TrainSpec, version: ModelVersion) -> ModelVersion:
    """The version of a finished run."""
    say(
        f"{version.reference} was trained from this very spec and data; reusing it. "
        "To train again, give the run a name: --set run=NAME"
    )
    return _alias_stays(registry, spec, version)


def _alias_stays(registry: Registry, spec: TrainSpec, version: ModelVersion) -> ModelVersion:
    """A version that is not new; says where the spec's alias is, if it is not there."""
    alias = spec.alias
    if alias and alias not in version.aliases:
        holder = next((other for other in registry.versions(version.name) if alias in other.aliases), None)
        place = f"is {holder.reference}" if holder else "does not exist"
        say(
            f"{version.name}@{alias} {place} and stays so, because only a new version moves it. To move it: "
            f"maas alias {version.name} {version.number} {alias}"
        )
    return version


def _train(run: TrainingRun, lease: Lease) -> ModelVersion:
    """Train, export and register a run that has no version yet."""
    spec, dataset = run.spec, run.dataset
    plan = make_plan(spec, dataset, lanes=run.lanes)
    say(
        f"training {spec.model} on {dataset.name}: {plan.total_steps:,} steps of {plan.batch_size} rows, "
        f"{workers_in_words(spec)}, run {run.name}"
    )
    for warning in [*check_network(spec, dataset), *check_deepspeed(spec, plan)]:
        say(warning)
    connect(run.settings)
    with run.recorded():
        reached = latest(run.home)
        last = newest(run.home, lambda _: None) if reached and reached.ended else None
        if last and last[1].ended:
            say(f"run {run.name} is trained to the end already")
        else:
            if not uses_gpus(spec):
                check_without_gpus(spec)
            run.registry.prove(spec.model, bundle_home(run.settings, spec.model))
            run.note_start(plan.total_steps)
            fit(run, plan)
            last = newest(run.home, say)
        lease.check()  # if this process was suspended, another one may have taken over
        bundle, version = finish(run, plan, last)
    say(f"{version.reference} registered  {in_words(dict(sorted(version.metrics.items())))}\n  {bundle.uri}")
    decide = partial(_move_alias if version.due else _alias_stays, run.registry, spec, version)
    return storage.retry_with_backoff(decide, spec.checkpoint.retry_seconds, say)


def _move_alias(registry: Registry, spec: TrainSpec, version: ModelVersion) -> ModelVersion:
    """A new version after its alias has moved to it, if the spec names one and every gate passes."""
    alias = spec.alias
    if alias and alias not in version.aliases:
        verdicts = judge(registry, version, alias, spec.gate)
        for verdict in verdicts:
            say(str(verdict))
        if all(verdict.passed for verdict in verdicts):
            registry.set_alias(version, alias)
            say(f"{spec.model}@{alias} is now {version.reference}")
        else:
            say(f"{spec.model}@{alias} stays where it is; {version.reference} is registered without it")
    registry.settle(version)
    return registry.resolve(version.reference)
