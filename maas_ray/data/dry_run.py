"""`maas prepare --dry-run`: run every check that needs no workers, and say what `maas prepare` would do."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from maas_ray.data.damage import named
from maas_ray.data.dataset import dataset_home
from maas_ray.data.pipeline.read_rows import reading_of
from maas_ray.data.plan import Plan, list_sources, plan_for
from maas_ray.data.reading import Inspected, inspect
from maas_ray.data.sources import InputFile
from maas_ray.data.spec import PrepareSpec
from maas_ray.settings import Settings

_THREADS = 16


def dry_run(spec: PrepareSpec, *, settings: Settings | None = None, fresh: bool = False) -> list[str]:
    """Check a spec and its input in this process, without a cluster; nothing is written.

    Every file is read once for its digest, unless the current dataset knows it with the same stamp.

    Args:
        spec: the prepare spec.
        settings: the storage. None: from the environment.
        fresh: whether `prepare` would be run with `fresh`.

    Returns:
        What `prepare` would do, a line each.

    Raises:
        DataError: the input cannot become a dataset; the same errors as of `prepare`.
    """
    settings = settings or Settings.from_environment()
    files = list_sources(spec)
    home = dataset_home(settings, spec.dataset)
    plan = plan_for(spec, files, home, partial(_inspect, spec), fresh=fresh)
    return [
        f"dataset {spec.dataset}: {_size(files)}",
        *(
            f"  sources[{index}]: {source.format} {source.location}: {len(listed):,} files"
            for index, (source, listed) in enumerate(zip(spec.sources, files, strict=True))
        ),
        f"  task: {spec.task.type}, columns {', '.join(spec.task.columns)}",
        *([f"  clean: {', '.join(step.step for step in spec.clean)}"] if spec.clean else []),
        _action(plan),
        *(f"  cannot be read: {line}" for line in named(file for source in plan.files for file in source)),
    ]


def _inspect(
    spec: PrepareSpec, files: list[list[InputFile]], before: Mapping[tuple[int, str], Inspected] | None
) -> list[list[Inspected]]:
    columns = reading_of(spec).names

    def inspected(number: int, file: InputFile) -> Inspected:
        known = (before or {}).get((number, file.relative))
        return inspect(spec.sources[number], file, columns, known if known and known.file == file else None)

    with ThreadPoolExecutor(_THREADS) as threads:
        return [list(threads.map(partial(inspected, number), listed)) for number, listed in enumerate(files)]


def _size(files: list[list[InputFile]]) -> str:
    return f"{sum(map(len, files)):,} files, {sum(file.size for source in files for file in source) / 1e6:,.1f} MB"


def _action(plan: Plan) -> str:
    if plan.reused is not None:
        return f"would reuse {plan.fingerprint[:16]}: nothing changed"
    rows = sum(file.rows for source in plan.files for file in source)
    if plan.parent is not None:
        new = [[file.file for file in source] for source in plan.files]
        old = plan.parent.dataset.fingerprint[:16]
        return f"would grow {old} by {_size(new)}, {rows:,} rows, to {plan.fingerprint[:16]}"
    reason = f", because {plan.reason}" if plan.reason else ""
    return f"would build {plan.fingerprint[:16]} from all files, {rows:,} rows{reason}"
