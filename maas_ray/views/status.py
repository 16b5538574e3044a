"""What there is, for a person or as JSON: models, endpoints, and all of it on one screen."""

import json
import textwrap
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from maas_ray import cluster as clusters
from maas_ray.errors import NotFoundError, StorageError
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings, exists
from maas_ray.tasks import find_task
from maas_ray.terminal.lines import duration, new_table, say, show_table

if TYPE_CHECKING:
    from maas_ray.serve.deployment.drift import Difference
    from maas_ray.serve.deployment.reconcile import Outcome
    from maas_ray.serve.deployment.verbs import Endpoint

# Older versions without an alias are counted, not listed.
_NEWEST = 3


def show_models(settings: Settings, name: str | None, *, as_json: bool = False) -> None:
    """All models with their versions, or one model's versions with lineage; the newest with its spec.

    As JSON, each version has everything. `name/number` and `name@alias` show one version with its evaluations.

    Raises:
        NotFoundError: there is no model of that name.
    """
    if name is not None and {"/", "@"} & set(name) and exists(settings.mlflow):
        _show_one(Registry(settings).resolve(name), as_json=as_json)
        return
    models = _models(settings)
    if name is not None and name not in models:
        raise NotFoundError(f"there is no model {name!r}; there are: {', '.join(models) or 'none'}.")
    shown = models[name] if name is not None else [version for versions in models.values() for version in versions]
    if as_json:
        print(json.dumps([document_of(version) for version in shown], indent=2))
    elif not shown:
        say("models     none; `maas train SPEC.yaml` makes one")
    elif name is None:
        show_table(_models_table(models))
    else:
        for version in shown:
            _show_version(version, spec=version is shown[0])


def show_endpoints(settings: Settings, *, as_json: bool = False) -> None:
    """What is served."""
    found = _endpoints(settings)
    if as_json:
        print(json.dumps([asdict(endpoint) for endpoint in found], indent=2, default=str))
    elif found:
        show_table(_endpoints_table(found))
    else:
        say("endpoints  none; `maas deploy NAME@ALIAS` makes one")


def show_history(settings: Settings, name: str, *, as_json: bool = False) -> None:
    """What one endpoint serves and served before, newest first; as JSON with the specs.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    from maas_ray.serve.deployment.verbs import history

    past = history(name, settings=settings)
    if as_json:
        print(json.dumps([asdict(one) for one in past], indent=2, default=str))
        return
    if not past:
        say(f"{name} has not served anything yet")
        return
    table = new_table("NUMBER", "VERSION", "DEPLOYED FROM", "SINCE")
    for one in past:
        table.add_row(str(one.number), one.version, one.spec["version"], f"{one.since.astimezone():%Y-%m-%d %H:%M:%S}")
    show_table(table)


def show_differences(found: "list[Difference]", *, as_json: bool = False) -> None:
    """What `maas diff` found."""
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    elif not found:
        say("no differences")
    else:
        table = new_table("ENDPOINT", "WHAT", "SHOULD BE", "IS")
        for one in found:
            table.add_row(one.endpoint, one.what, one.should, one.found)
        show_table(table)


def show_outcomes(outcomes: "list[Outcome]") -> None:
    """What `maas reconcile` did."""
    if not outcomes:
        say("everything stands as it should; nothing to do")
    for outcome in outcomes:
        say(f"{outcome.endpoint} {outcome.done}" + (f": {outcome.problem}" if outcome.problem else ""))


def show_deployed(endpoint: "Endpoint") -> None:
    """Where a version just deployed answers, with a line to try."""
    say(f"{endpoint.name} serves {endpoint.version} at {endpoint.url}")
    if endpoint.task == "text-generation":
        say(f"  engine: {endpoint.engine}")
        for adapter, version in endpoint.adapters.items():
            say(f"  {endpoint.name}:{adapter} is {version}")
        body = json.dumps({"model": endpoint.name, "prompt": "Once", "max_tokens": 32})
        say(f"  curl {endpoint.url}/v1/completions -H 'Content-Type: application/json' -d '{body}'")
    else:
        say(f"  curl {_row_of(endpoint.task)} {endpoint.url}/v1/models/{endpoint.name}/predict")


def _row_of(task: str) -> str:
    """A row for a task, as curl sends it."""
    kind = find_task(task)
    if kind is None:
        return "-d '{…}'"
    if kind.file:
        return "-F file=@PATH"
    row = {name: "…" for name, field in kind.request.model_fields.items() if field.is_required()}
    return f"-d '{json.dumps(row, ensure_ascii=False)}'"


def show_status(settings: Settings) -> None:
    """One screen: cluster, jobs, models, endpoints."""
    found = clusters.find(settings)
    if found is None:
        say("cluster    none is running; `maas up` starts one")
    else:
        joined = clusters.connect(settings, start=False)
        _show_cluster(joined)
        _show_jobs(joined)
    say("")
    show_models(settings, None)
    say("")
    show_endpoints(settings)


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


# --- the cluster -----------------------------------------------------------------------------------


def _show_cluster(cluster: clusters.Cluster) -> None:
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    total, free = ray.cluster_resources(), ray.available_resources()
    used = [
        f"{total[name] - free.get(name, 0.0):g}/{total[name]:g} {name}s" for name in ("CPU", "GPU") if total.get(name)
    ]
    say(f"cluster    {cluster.address}, {cluster.origin}")
    say(f"           {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}, {', '.join(used)} in use")
    if cluster.dashboard:
        say(f"dashboard  {cluster.dashboard}")


def _show_jobs(cluster: clusters.Cluster) -> None:
    """Running jobs, both submitted ones and programs that connected; this process is not one."""
    import ray
    from ray.util.state import list_jobs

    if not cluster.dashboard:
        return
    own = ray.get_runtime_context().get_job_id()
    running = list_jobs(
        address=cluster.dashboard, filters=[("status", "=", "RUNNING")], detail=True, raise_on_missing_output=False
    )
    jobs = [job for job in running if job.job_id != own]
    say(f"jobs       {'none running' if not jobs else ''}".rstrip())
    for job in jobs:
        since = f"for {duration(time.time() - job.start_time / 1000)}" if job.start_time else ""
        say(f"           {job.submission_id or job.job_id}  {job.entrypoint}  {since}".rstrip())


# --- models and endpoints --------------------------------------------------------------------------


def _models(settings: Settings) -> dict[str, list[ModelVersion]]:
    return Registry(settings).models() if exists(settings.mlflow) else {}


def _endpoints(settings: Settings) -> "list[Endpoint]":
    from maas_ray.serve.deployment.verbs import endpoints

    return endpoints(settings=settings) if exists(settings.database) else []


def _models_table(models: dict[str, list[ModelVersion]]) -> Table:
    table = new_table("MODEL", "VERSION", "ALIASES", "TASK", "METRICS", "MADE")
    for name, versions in models.items():
        listed = [v for place, v in enumerate(versions) if place < _NEWEST or v.aliases]
        for version in listed:
            made = f"{version.created.astimezone():%Y-%m-%d %H:%M}"
            aliases = ", ".join(version.aliases)
            table.add_row(name, str(version.number), aliases, version.task, _headline(version), made)
        if len(listed) < len(versions):
            table.add_row(name, f"… {len(versions) - len(listed)} older")
    return table


def _headline(version: ModelVersion) -> str:
    """The metric a person looks at first, on each split it was measured on."""
    task = find_task(version.task)
    for metric in task.headline if task else ("loss",):
        found = [(key.rpartition("/")[0], value) for key, value in version.metrics.items() if _last(key) == metric]
        if found:
            return f"{metric} " + ", ".join(
                f"{value:.4g} ({split})" if split else f"{value:.4g}" for split, value in found
            )
    return ""


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _show_one(version: ModelVersion, *, as_json: bool) -> None:
    """A version with all that it was evaluated at."""
    from maas_ray.evaluation import report
    from maas_ray.views import evaluations as showing

    if as_json:
        reports = [report.find(evaluation.uri)[0].document() for evaluation in version.evaluations]
        print(json.dumps([{**document_of(version), "evaluations": reports}], indent=2, ensure_ascii=False))
        return
    _show_version(version, spec=True)
    for evaluation in version.evaluations:
        try:
            showing.show_report(*report.find(evaluation.uri))
        except (NotFoundError, StorageError) as error:
            say(f"\n{evaluation.dataset}/{evaluation.split}: the report cannot be read: {error}")


def _show_version(version: ModelVersion, *, spec: bool) -> None:
    lineage = version.lineage
    dataset = f"{lineage.dataset} ({lineage.dataset_fingerprint[:16]}) at {lineage.dataset_uri}"
    facts = {
        "aliases": ", ".join(version.aliases) or "none",
        "task": version.task,
        "made": f"{version.created.astimezone():%Y-%m-%d %H:%M:%S}",
        "metrics": ", ".join(f"{key} {value:.6g}" for key, value in sorted(version.metrics.items())),
        "evaluated": ", ".join(
            f"{one.dataset}/{one.split} {key} {value:.6g}"
            for one in version.evaluations
            for key, value in one.metrics.items()
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
        # Innermost mappings on one line each, so that a screen holds it.
        text = yaml.safe_dump(lineage.spec, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
        say("  spec\n" + textwrap.indent(text.rstrip(), "    "))


def _endpoints_table(endpoints: Iterable["Endpoint"]) -> Table:
    table = new_table("ENDPOINT", "VERSION", "STATE", "REPLICAS", "ENGINE", "URL")
    for endpoint in endpoints:
        replicas = f"{endpoint.replicas}{' shared' if endpoint.shared else ''}"
        table.add_row(endpoint.name, endpoint.version, endpoint.state, replicas, endpoint.engine, endpoint.url)
        for adapter, version in endpoint.adapters.items():
            table.add_row(f"{endpoint.name}:{adapter}", version, "", "", "", "")
    return table
