"""`dry_run`: the checks of `train`, and a description of what it would do. No worker starts and no run is created."""

from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import CorruptError
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings, exists
from maas_ray.training.checkpoints.catalog import inspect, latest, saved
from maas_ray.training.deepspeed.batch import batch_geometry
from maas_ray.training.deepspeed.defaults import precision
from maas_ray.training.deepspeed.document import zero_stage
from maas_ray.training.deepspeed.resolve import resolve
from maas_ray.training.plan import Plan
from maas_ray.training.preflight import check_deepspeed, check_network, make_plan, open_for, with_defaults
from maas_ray.training.ray_train.launch import workers_in_words
from maas_ray.training.runs.record import TAG_LANES, TAG_RUN, RunKey, lanes_of, run_home, version_of
from maas_ray.training.spec import TrainSpec


def dry_run(spec: TrainSpec, *, settings: Settings | None = None) -> list[str]:
    """Lines that say what `train` would do with a spec.

    Raises:
        SpecError: the network does not support the dataset's task, a run of this name was started from another spec,
            or DeepSpeed refuses the configuration.
        NotFoundError: the dataset does not exist.
    """
    settings = settings or Settings.from_environment()
    dataset = open_for(spec, settings)
    spec = with_defaults(spec, dataset)
    key, registry = RunKey.of(spec, dataset), Registry(settings)
    run = key.find(spec, registry) if exists(settings.mlflow) else None
    name = run.data.tags[TAG_RUN] if run else key.name
    home = run_home(settings, spec.model, name)
    lanes, reached = int(run.data.tags[TAG_LANES]) if run else None, latest(home)
    if reached:
        lanes = lanes_of(reached, spec, dataset, key, recorded=lanes)
    plan = make_plan(spec, dataset, lanes=lanes)
    warnings = [*check_network(spec, dataset), *check_deepspeed(spec, plan)]
    version = version_of(registry, spec, run.info.run_id) if run else None
    return [
        _dataset(dataset),
        f"network: {spec.network.type}",
        f"workers: {workers_in_words(spec)}, {spec.cpus_per_worker:g} CPUs each, device {spec.device}",
        _steps(spec, plan),
        _batch(spec),
        _optimizer(spec, plan),
        f"checkpoint every {spec.checkpoint.every_steps:,} steps, validation every {spec.validate_every:,} steps",
        f"run {name}: would be reused; it ended as {version.reference}"
        if version
        else f"run {name}: {_start(home) if run or reached else 'would start'}",
        _result(spec, registered=version is not None),
        *warnings,
    ]


def _dataset(dataset: PreparedDataset) -> str:
    rows = ", ".join(f"{split.rows:,} rows for {name}" for name, split in dataset.meta.splits.items())
    return f"dataset: {dataset.name}, {dataset.task.spec.type}, {rows} (fingerprint {dataset.fingerprint})"


def _steps(spec: TrainSpec, plan: Plan) -> str:
    epochs = plan.total_steps / plan.steps_per_epoch
    limit = f", at most {spec.max_minutes:g} minutes" if spec.max_minutes else ""
    return f"steps: {plan.total_steps:,} of {plan.batch_size:,} rows, {epochs:.3g} epochs{limit}"


def _batch(spec: TrainSpec) -> str:
    numbers = sorted({spec.min_workers, spec.max_workers})
    geometries = {workers: batch_geometry(spec, workers) for workers in numbers}
    ways = " or ".join(
        f"{workers:,} × {geometry.micro_batch:,} rows a pass × {geometry.passes:,} passes"
        for workers, geometry in geometries.items()
    )
    return f"batch: {ways}; {precision(spec)}, ZeRO stage {zero_stage(spec.deepspeed)}"


def _optimizer(spec: TrainSpec, plan: Plan) -> str:
    config = resolve(spec, workers=spec.max_workers, total_steps=plan.total_steps, hidden_size=None, on_cpu=False)
    optimizer = config["optimizer"]
    known = {"lr": "learning rate", "weight_decay": "weight decay"}
    params = optimizer.get("params", {})
    return ", ".join([f"optimizer: {optimizer['type']}", *(f"{known[k]} {params[k]:g}" for k in known if k in params)])


def _start(home: str) -> str:
    """How a run that exists would go on, by the newest checkpoint whose files all have their size."""
    for uri in saved(home):
        try:
            position, _ = inspect(uri)
        except CorruptError:
            continue
        if position.ended:
            return f"is trained to the end at step {position.step:,}; would be exported and registered"
        return f"would resume from step {position.step:,}"
    return "would start again; it does not have a checkpoint yet"


def _result(spec: TrainSpec, *, registered: bool) -> str:
    verb = "has a version of" if registered else "would register a version of"
    if not spec.alias:
        return f"result: {verb} {spec.model}"
    condition = f" if {' and '.join(spec.gate)}" if spec.gate else ""
    if registered:
        return f"result: {verb} {spec.model}; alias {spec.alias} stays, because only a new version moves it"
    return f"result: {verb} {spec.model}; alias {spec.alias} would move to it{condition}"
