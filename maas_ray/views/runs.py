"""Training runs, for a person or as JSON: a list of all, or one run with its curves.

Everything is read from MLflow, which knows only what the driver reported. A run whose driver was killed stays `running`
there until it is started again, so a running one shows the time of its last report.
"""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.measure import Measurement
from rich.table import Table

from maas_ray.errors import NotFoundError, SpecError
from maas_ray.registry.versions import TAG_TASK, Registry
from maas_ray.settings import Settings, exists
from maas_ray.tasks import Task, find_task
from maas_ray.terminal.curves import Chart, Points, Series, draw, finite, short, write_png
from maas_ray.terminal.lines import console, duration, new_table, print_json, say, show_table
from maas_ray.training import events
from maas_ray.training.runs.record import TAG_IDENTITY, TAG_PACKAGES, TAG_REVISION, TAG_RUN, TAG_TOTAL_STEPS

_OURS = f"tags.`{TAG_RUN}` != ''"
_NEWEST = ["attributes.start_time DESC"]
_TAG_DATASET = "maas.dataset"
_SHOWN_ELSEWHERE = {TAG_RUN, TAG_IDENTITY, TAG_PACKAGES, TAG_TOTAL_STEPS, _TAG_DATASET}
_NAMED_IN_ERRORS = 5
_MAX_WIDTH = 120  # wider curves show nothing more

# Fields of a spec that affect the result, besides the network and DeepSpeed's configuration.
_TRAINING = (
    *("workers", "device", "precision", "epochs", "max_steps", "batch_size", "micro_batch_size"),
    *("learning_rate", "warmup_steps", "weight_decay", "gradient_clipping", "seed"),
)


@dataclass(frozen=True)
class Run:
    """A training run as MLflow records it."""

    name: str
    run_id: str
    model: str
    state: str
    """running, finished, failed or killed."""
    step: int
    total_steps: int | None
    """None: the run is older than this field."""
    started: datetime
    heard: datetime | None
    """The time of the last reported loss. None: none was reported, or the run is over."""
    seconds: float
    """Time from the first start to the end or to now, including pauses between attempts."""
    version: str
    """The registered version, as `name/number`. Empty: none."""
    metrics: dict[str, float]
    """Last values."""
    parameters: dict[str, str]
    tags: dict[str, str]

    @property
    def task(self) -> type[Task] | None:
        """The task of the model. None: this version of maas_ray does not know it."""
        return find_task(self.tags.get(TAG_TASK, ""))

    @property
    def unit(self) -> str:
        return self.task.unit if self.task else "units"

    @property
    def headline(self) -> tuple[str, float] | None:
        """The task's main validation metric."""
        for name in self.task.headline if self.task else ("loss",):
            if (value := self.metrics.get(f"validation/{name}")) is not None:
                return name, value
        return None

    def document(self) -> dict[str, Any]:
        """The entry of a list as plain JSON values."""
        return {
            **{name: getattr(self, name) for name in ("name", "run_id", "model", "state", "step", "total_steps")},
            "loss": self.metrics.get(events.LOSS),
            "validation": dict([self.headline] if self.headline else []),
            "units_per_second": self.metrics.get(events.UNITS_PER_SECOND),
            "unit": self.unit,
            "started": self.started.isoformat(),
            "seconds": self.seconds,
            "version": self.version or None,
        }


def show_runs(settings: Settings, limit: int, *, as_json: bool = False) -> None:
    """Print the newest runs, newest first."""
    runs = _newest(Registry(settings), limit) if exists(settings.mlflow) else []
    if as_json:
        _print_json([run.document() for run in runs])
    elif runs:
        wide, out = _wide_table(runs), console()
        needed = Measurement.get(out, out.options.update(max_width=1000), wide).maximum
        show_table(_narrow_table(runs) if out.is_terminal and needed > out.width else wide)
    else:
        say("runs       none; `maas train SPEC` starts one")


def show_run(settings: Settings, reference: str, *, as_json: bool = False, png: Path | None = None) -> None:
    """Print one run: its parameters, results and curves.

    Args:
        settings: the settings with MLflow's URI.
        reference: the run's name, its MLflow run id, or the start of the id.
        as_json: print JSON, with every value of every metric.
        png: also write the curves to this file.

    Raises:
        NotFoundError: the run does not exist; names the newest runs.
        SpecError: the reference matches several runs.
        StorageError: the PNG cannot be written.
    """
    if not exists(settings.mlflow):
        raise NotFoundError(f"unknown run {reference!r}; no run was recorded yet.", code="unknown_run")
    registry = Registry(settings)
    run = _find(registry, reference)
    history = {key: registry.client.get_metric_history(run.run_id, key) for key in sorted(run.metrics)}
    charts = _charts(run, {key: _by_step(points) for key, points in history.items()})
    if png is not None and charts:
        write_png(charts, png, f"{run.name} ({run.state})")
    if as_json:
        points = {
            key: [{"step": m.step, "value": m.value, "time": _time(m.timestamp).isoformat()} for m in metrics]
            for key, metrics in history.items()
        }
        more = {"parameters": run.parameters, "tags": run.tags, "metrics": run.metrics, "history": points}
        _print_json(run.document() | more)
        return
    say(run.name)
    show_table(_facts_table(run, history))
    out = console()
    for chart in charts:
        say("")
        out.print(draw(chart, min(out.width, _MAX_WIDTH)), soft_wrap=True)
    if png is not None:
        say(f"\n{png} written" if charts else f"\n{png} not written: the run has not reported yet")


# --- reading ---------------------------------------------------------------------------------------


def _newest(registry: Registry, limit: int, query: str = _OURS) -> list[Run]:
    models: dict[str, str] = {}
    token: str | None = None
    while token != "":
        page = registry.client.search_experiments(page_token=token)
        models |= {experiment.experiment_id: experiment.name for experiment in page}
        token = page.token or ""
    mlflow_runs = registry.client.search_runs(list(models), query, max_results=limit, order_by=_NEWEST)
    versions = {
        version.lineage.run_id: version.reference
        for model in {models[run.info.experiment_id] for run in mlflow_runs}
        for version in registry.versions(model)
    }
    return [
        _run(registry, run, models[run.info.experiment_id], versions.get(run.info.run_id, "")) for run in mlflow_runs
    ]


def _find(registry: Registry, reference: str) -> Run:
    """The run with this name, or else with an id that starts like this."""
    queries = [f"tags.`{TAG_RUN}` = '{reference}'"] if re.fullmatch(r"[\w.-]+", reference) else []
    if re.fullmatch(r"[0-9a-f]{1,32}", reference):
        queries.append(f"{_OURS} AND attributes.run_id LIKE '{reference}%'")
    for query in queries:
        runs = _newest(registry, _NAMED_IN_ERRORS, query)
        if len(runs) == 1:
            return runs[0]
        if runs:
            meant = ", ".join(f"{run.name} of {run.model} ({run.run_id[:12]})" for run in runs)
            raise SpecError(
                f"run {reference!r}", [f"matches several runs: {meant}. Give more of the id."], code="ambiguous_run"
            )
    known = ", ".join(run.name for run in _newest(registry, _NAMED_IN_ERRORS)) or "none"
    raise NotFoundError(f"unknown run {reference!r}; the newest are: {known}.", code="unknown_run")


def _run(registry: Registry, mlflow_run: Any, model: str, version: str) -> Run:
    info, data = mlflow_run.info, mlflow_run.data
    total = int(data.tags[TAG_TOTAL_STEPS]) if TAG_TOTAL_STEPS in data.tags else None
    running = info.status == "RUNNING"
    step, heard = total or 0, None
    if not (info.status == "FINISHED" and info.end_time and total):  # otherwise the history is not needed
        losses = registry.client.get_metric_history(info.run_id, events.LOSS)
        last = max(losses, key=lambda metric: (metric.timestamp, metric.step), default=None)
        step, heard = (last.step, _time(last.timestamp)) if last else (0, None)
    started = _time(info.start_time)
    end = datetime.now(UTC) if running else _time(info.end_time) if info.end_time else heard or started
    return Run(
        name=data.tags[TAG_RUN],
        run_id=info.run_id,
        model=model,
        state=info.status.lower(),
        step=step,
        total_steps=total,
        started=started,
        heard=heard,
        seconds=(end - started).total_seconds(),
        version=version,
        metrics=dict(data.metrics),
        parameters=dict(data.params),
        tags={key: value for key, value in data.tags.items() if key.startswith("maas.") or key == TAG_REVISION},
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def _by_step(metrics: list[Any]) -> list[tuple[int, float]]:
    """One value for each step. A resumed run has reported some steps twice; the later value counts."""
    return sorted({metric.step: metric.value for metric in sorted(metrics, key=lambda m: m.timestamp)}.items())


# --- the list --------------------------------------------------------------------------------------


def _cells(run: Run) -> dict[str, str]:
    total = f"/{run.total_steps:,}" if run.total_steps else ""
    speed = run.metrics.get(events.UNITS_PER_SECOND)
    return {
        "step": f"{run.step:,}{total}",
        "loss": f"{run.metrics[events.LOSS]:.4g}" if events.LOSS in run.metrics else "–",
        "validation": f"{run.headline[0]} {run.headline[1]:.4g}" if run.headline else "–",
        "speed": f"{short(speed)} {run.unit}/s" if speed is not None else "–",
        "day": f"{run.started.astimezone():%Y-%m-%d}",
        "hour": f"{run.started.astimezone():%H:%M}",
        "took": duration(run.seconds),
    }


def _wide_table(runs: list[Run]) -> Table:
    table = new_table("RUN", "MODEL", "STATE", "STEP", "LOSS", "VALIDATION", "SPEED", "STARTED", "TOOK", "VERSION")
    for run in runs:
        cells = _cells(run)
        middle = (cells["step"], cells["loss"], cells["validation"], cells["speed"])
        started = f"{cells['day']} {cells['hour']}"
        table.add_row(run.name, run.model, run.state, *middle, started, cells["took"], run.version or "–")
    return table


def _narrow_table(runs: list[Run]) -> Table:
    """Two lines for each run, for a terminal that is too narrow for the wide table."""
    table = new_table("RUN\n  MODEL/VERSION", "STATE\nTOOK", "STEP\nSPEED", "LOSS\nVALIDATION", "STARTED")
    for run in runs:
        cells = _cells(run)
        table.add_row(
            f"{run.name}\n  {run.version or run.model}",
            f"{run.state}\n{cells['took']}",
            f"{cells['step']}\n{cells['speed']}",
            f"{cells['loss']}\n{cells['validation']}",
            f"{cells['day']}\n{cells['hour']}",
        )
    return table


# --- one run ---------------------------------------------------------------------------------------


def _facts_table(run: Run, history: dict[str, list[Any]]) -> Table:
    cells = _cells(run)
    silent = (datetime.now(UTC) - run.heard).total_seconds() if run.state == "running" and run.heard else None
    facts = {
        "state": f"{run.state}, step {cells['step']}" + (f", last report {duration(silent)} ago" if silent else ""),
        "model": run.version or f"{run.model}, no version",
        "dataset": run.tags.get(_TAG_DATASET, ""),
        "mlflow": run.run_id,
        "code": run.tags.get(TAG_REVISION, ""),
        "started": f"{cells['day']} {run.started.astimezone():%H:%M:%S}, {cells['took']}",
        "network": _pairs(_below(run.parameters, "network.")),
        "training": _pairs({key: run.parameters[key] for key in _TRAINING if key in run.parameters}),
        "deepspeed": _pairs(_below(run.parameters, "deepspeed.")),
        **{key.removeprefix("maas."): v for key, v in sorted(run.tags.items()) if key not in _SHOWN_ELSEWHERE},
        **{key.removeprefix("maas."): _events(points) for key, points in history.items() if key.startswith("maas.")},
    }
    facts.pop(TAG_REVISION, None)
    for split in dict.fromkeys(key.rpartition("/")[0] for key in run.metrics if not key.startswith("maas.")):
        values = {k: v for k, v in sorted(_below(run.metrics, f"{split}/").items()) if "/" not in k}
        facts[split] = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    facts["time"] = _where_time_went(run, history)
    table = Table.grid(padding=(0, 1))
    for label, fact in facts.items():
        if fact:
            table.add_row(f"  {label}", fact)
    return table


def _below(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _pairs(values: dict[str, str]) -> str:
    # DeepSpeed fills "auto" from the other values, and None means the field's default.
    return ", ".join(f"{key} {value}" for key, value in values.items() if value not in ("None", "auto"))


def _events(metrics: list[Any]) -> str:
    """The values of a number, each with the step from which it holds."""
    changes: list[str] = []
    before: float | None = None
    for metric in sorted(metrics, key=lambda m: m.timestamp):
        if metric.value != before:
            changes.append(f"{metric.value:g} from step {metric.step:,}")
        before = metric.value
    return ", ".join(changes)


def _where_time_went(run: Run, history: dict[str, list[Any]]) -> str:
    """Time in training steps, in waiting for data during them, in checkpoints, in validation, and the rest."""
    saves = history.get(events.CHECKPOINT_SECONDS, [])
    shares = {(m.timestamp, m.step): m.value for m in history.get(events.DATA_WAIT_SHARE, [])}
    stepping = waiting = 0.0
    before = 0
    for metric in sorted(history.get(events.STEP_SECONDS, []), key=lambda m: m.timestamp):
        if metric.step <= before:  # the run resumed from a checkpoint
            before = max((save.step for save in saves if save.step < metric.step), default=0)
        seconds = metric.value * (metric.step - before)
        stepping += seconds
        waiting += seconds * shares.get((metric.timestamp, metric.step), 0.0)
        before = metric.step
    if not stepping:
        return ""
    saving = sum(metric.value for metric in saves)
    validating = sum(metric.value for metric in history.get(events.VALIDATION_SECONDS, []))
    parts = {
        "steps": stepping,
        "of these waiting for data": waiting,
        f"{len(saves)} checkpoint{'s' if len(saves) != 1 else ''}": saving,
        "validation": validating,
        "the rest (start, export, pauses)": max(run.seconds - stepping - saving - validating, 0.0),
    }
    return "\n".join(
        f"{duration(seconds):>12} {seconds / run.seconds if run.seconds else 0:>5.1%}  {part}"
        for part, seconds in parts.items()
    )


def _charts(run: Run, points: dict[str, Points]) -> list[Chart]:
    """Charts of loss, learning rate and throughput, as far as they have values."""

    def series(key: str, label: str, *, marked: bool = False) -> tuple[Series, ...]:
        return (Series(label, points[key], marked),) if finite(points.get(key, ())) else ()

    charts = [
        Chart("loss", series(events.LOSS, "train") + series("validation/loss", "validation", marked=True), rows=12),
        Chart("learning rate", series(events.LEARNING_RATE, "last"), from_zero=True),
        Chart(f"{run.unit}/s", series(events.UNITS_PER_SECOND, "last"), from_zero=True),
    ]
    return [chart for chart in charts if chart.series]


def _print_json(document: Any) -> None:
    print_json(_plain(document))


def _plain(value: Any) -> Any:
    """A value with null in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
