"""`train`: one transaction from a prepared dataset to a registered version.

    name the run ─▶ Ray Train: workers, checkpoints ─▶ export ─▶ publish the bundle ─▶ register ─▶ alias

A run is named by its spec and its dataset, and every stage is idempotent. The same `train` again resumes where it
stopped: finished training is not repeated, a published bundle is recognised by its digest, a registered version by
its bundle. If it is killed anywhere, there is either no version or a whole one.
"""

from maas_ray.cluster import connect
from maas_ray.registry.gates import judge
from maas_ray.registry.versions import ModelVersion
from maas_ray.settings import Settings
from maas_ray.terminal.lines import say
from maas_ray.training.checkpoints.catalog import newest
from maas_ray.training.events import in_words
from maas_ray.training.finish import finish
from maas_ray.training.preflight import check_deepspeed, check_network, make_plan, open_for
from maas_ray.training.ray_train.launch import fit, workers_in_words
from maas_ray.training.record import TrainingRun, open_run
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
    run = open_run(spec, dataset, settings)
    plan = make_plan(spec, dataset, lanes=run.lanes)
    run.set_total_steps(plan.total_steps)
    registered = run.version()
    if registered:
        say(
            f"{registered.reference} was trained from this very spec and data; reusing it. "
            "To train again, give the run a name: --set run=NAME"
        )
        return _move_alias(run, registered) if registered.due else _told(run, registered)
    say(
        f"training {spec.model} on {dataset.name}: {plan.total_steps:,} steps of {plan.batch_size} rows, "
        f"{workers_in_words(spec)}, run {run.name}"
    )
    for warning in [*check_network(spec, dataset), *check_deepspeed(spec, plan)]:
        say(warning)
    connect(settings)
    with run.recorded():
        last = newest(run.home, lambda _: None)  # the workers report checkpoints that are skipped
        if last and last[1].ended:
            say(f"run {run.name} is trained to the end already")
        else:
            fit(run, plan)
            last = newest(run.home, say)
        bundle, version = finish(run, plan, last)
    say(f"{version.reference} registered  {in_words(dict(sorted(version.metrics.items())))}\n  {bundle.uri}")
    return _move_alias(run, version)


def _told(run: TrainingRun, version: ModelVersion) -> ModelVersion:
    """The version of an earlier start. Its alias may have moved on since, so it stays; say where it is."""
    alias = run.spec.alias
    if alias and alias not in version.aliases:
        holder = next((other for other in run.registry.versions(version.name) if alias in other.aliases), None)
        place = f"is {holder.reference}" if holder else "does not exist"
        say(
            f"{version.name}@{alias} {place} and stays so, because only a new version moves it. To move it: "
            f"maas alias {version.name} {version.number} {alias}"
        )
    return version


def _move_alias(run: TrainingRun, version: ModelVersion) -> ModelVersion:
    """A new version after its alias has moved to it, if the spec names one and every gate passes."""
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
    run.registry.settle(version)
    return run.registry.resolve(version.reference)
