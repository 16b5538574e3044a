"""Models and their versions, for a person or as JSON."""

import textwrap
from typing import Any

import yaml
from rich.table import Table

from maas_ray.errors import NotFoundError, StorageError
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings, exists
from maas_ray.tasks import find_task
from maas_ray.terminal.lines import new_table, print_json, say, show_table

# The list shows the newest versions and those with an alias; older ones are counted.
_NEWEST = 3


def show_models(settings: Settings, name: str | None, *, as_json: bool = False) -> None:
    """Print all models, the versions of one model with lineage, or one version with its evaluations.

    Args:
        settings: the settings with MLflow's URI.
        name: None for all models, a model, or a version as `name/number` or `name@alias`.
        as_json: print every version in full as JSON. Otherwise only the newest is shown with its spec.

    Raises:
        NotFoundError: the model or the version does not exist.
    """
    if name is not None and {"/", "@"} & set(name) and exists(settings.mlflow):
        _show_one(Registry(settings).resolve(name), as_json=as_json)
        return
    models = _models(settings)
    if name is not None and name not in models:
        known = ", ".join(models) or "none"
        raise NotFoundError(f"unknown model {name!r}; registered: {known}.", code="unknown_model")
    shown = models[name] if name is not None else [version for versions in models.values() for version in versions]
    if as_json:
        print_json([document_of(version) for version in shown])
    elif not shown:
        say("models     none; `maas train SPEC` registers one")
    elif name is None:
        show_table(_models_table(models))
    else:
        for version in shown:
            _show_version(version, spec=version is shown[0])


def documents(settings: Settings) -> list[dict[str, Any]]:
    """All versions of all models as plain JSON values."""
    return [document_of(version) for versions in _models(settings).values() for version in versions]


def document_of(version: ModelVersion) -> dict[str, Any]:
    """A version as plain JSON values."""
    fields = {name: getattr(version, name) for name in ("name", "number", "task", "uri", "digest", "metrics")}
    return {
        "reference": version.reference,
        **fields,
        "aliases": list(version.aliases),
        "created": version.created.isoformat(),
        "lineage": version.lineage.document(),
        "evaluations": [evaluation.document() for evaluation in version.evaluations],
    }


def _models(settings: Settings) -> dict[str, list[ModelVersion]]:
    return Registry(settings).models() if exists(settings.mlflow) else {}


def _models_table(models: dict[str, list[ModelVersion]]) -> Table:
    table = new_table("MODEL", "VERSION", "ALIASES", "TASK", "METRICS", "CREATED")
    for name, versions in models.items():
        listed = [v for index, v in enumerate(versions) if index < _NEWEST or v.aliases]
        for version in listed:
            created = f"{version.created.astimezone():%Y-%m-%d %H:%M}"
            aliases = ", ".join(version.aliases)
            table.add_row(name, str(version.number), aliases, version.task, _headline(version), created)
        if len(listed) < len(versions):
            table.add_row(name, f"… {len(versions) - len(listed)} older")
    return table


def _headline(version: ModelVersion) -> str:
    """The task's main metric, on each split that it was measured on."""
    task = find_task(version.task)
    for metric in task.headline if task else ("loss",):
        values = [(key.rpartition("/")[0], value) for key, value in version.metrics.items() if _last(key) == metric]
        if values:
            return f"{metric} " + ", ".join(
                f"{value:.4g} ({split})" if split else f"{value:.4g}" for split, value in values
            )
    return ""


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _show_one(version: ModelVersion, *, as_json: bool) -> None:
    """Print one version with its evaluations."""
    from maas_ray.evaluation import report
    from maas_ray.views import evaluations

    if as_json:
        reports = [report.find(evaluation.uri)[0].document() for evaluation in version.evaluations]
        print_json([{**document_of(version), "evaluations": reports}])
        return
    _show_version(version, spec=True)
    for evaluation in version.evaluations:
        try:
            evaluations.show_report(*report.find(evaluation.uri))
        except (NotFoundError, StorageError) as error:
            say(f"\n{evaluation.dataset}/{evaluation.split}: the report cannot be read: {error}")


def _show_version(version: ModelVersion, *, spec: bool) -> None:
    lineage = version.lineage
    dataset = f"{lineage.dataset} ({lineage.dataset_fingerprint[:16]}) at {lineage.dataset_uri}"
    facts = {
        "aliases": ", ".join(version.aliases) or "none",
        "task": version.task,
        "created": f"{version.created.astimezone():%Y-%m-%d %H:%M:%S}",
        "metrics": ", ".join(f"{key} {value:.6g}" for key, value in sorted(version.metrics.items())),
        "evaluated": ", ".join(
            f"{evaluation.dataset}/{evaluation.split} {key} {value:.6g}"
            for evaluation in version.evaluations
            for key, value in evaluation.metrics.items()
        ),
        "bundle": version.uri,
        "digest": version.digest,
        "dataset": dataset if lineage.dataset else "",
        "run": f"{lineage.run} (MLflow {lineage.run_id})" if lineage.run else "",
        "parent": lineage.parent,
        "code": lineage.code_revision,
        "packages": ", ".join(f"{name} {number}" for name, number in sorted(lineage.packages.items())),
    }
    say(version.reference)
    for label, fact in facts.items():
        if fact:
            say(f"  {label:<9} {fact}")
    if spec and lineage.spec:
        # The innermost mappings take one line each, so that the spec fits on a screen.
        text = yaml.safe_dump(lineage.spec, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
        say("  spec\n" + textwrap.indent(text.rstrip(), "    "))
