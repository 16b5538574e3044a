"""The cluster, jobs, models and endpoints on one screen, for a person or as JSON."""

import time
from dataclasses import asdict
from typing import Any

from maas_ray import cluster as clusters
from maas_ray.settings import Settings
from maas_ray.terminal.lines import duration, print_json, say
from maas_ray.views import endpoints, models


def show_status(settings: Settings, *, as_json: bool = False) -> None:
    """One screen: cluster, jobs, models, endpoints."""
    cluster = clusters.connect(settings, start=False) if clusters.find(settings) else None
    if as_json:
        document = {
            "cluster": None if cluster is None else _cluster_document(cluster),
            "models": models.documents(settings),
            "endpoints": [asdict(endpoint) for endpoint in endpoints.listed(settings)],
        }
        print_json(document)
        return
    if cluster is None:
        say("cluster    not running; `maas up` starts one")
    else:
        _show_cluster(_cluster_document(cluster))
    say("")
    models.show_models(settings, None)
    say("")
    endpoints.show_endpoints(settings)


def _cluster_document(cluster: clusters.Cluster) -> dict[str, Any]:
    """The cluster as plain JSON values. `jobs` is null if the cluster has no dashboard, which lists them."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    return {
        "address": cluster.address,
        "origin": cluster.origin,
        "dashboard": cluster.dashboard or None,
        "nodes": sum(node["Alive"] for node in ray.nodes()),
        "resources": {
            name: {"used": total[name] - free.get(name, 0.0), "total": total[name]}
            for name in ("CPU", "GPU")
            if total.get(name)
        },
        "jobs": _jobs(cluster) if cluster.dashboard else None,
    }


def _jobs(cluster: clusters.Cluster) -> list[dict[str, Any]]:
    """Running jobs: submitted ones and programs that connected, without this process."""
    import ray
    from ray.util.state import list_jobs

    this = ray.get_runtime_context().get_job_id()
    running = list_jobs(
        address=cluster.dashboard, filters=[("status", "=", "RUNNING")], detail=True, raise_on_missing_output=False
    )
    return [
        {
            "id": job.submission_id or job.job_id,
            "command": job.entrypoint,
            "seconds": time.time() - job.start_time / 1000 if job.start_time else None,
        }
        for job in running
        if job.job_id != this
    ]


def _show_cluster(cluster: dict[str, Any]) -> None:
    used = [f"{amount['used']:g}/{amount['total']:g} {name}s" for name, amount in cluster["resources"].items()]
    say(f"cluster    {cluster['address']}, {cluster['origin']}")
    say(f"           {cluster['nodes']} {'node' if cluster['nodes'] == 1 else 'nodes'}, {', '.join(used)} in use")
    if cluster["dashboard"]:
        say(f"dashboard  {cluster['dashboard']}")
    if cluster["jobs"] is None:
        return
    say("jobs" if cluster["jobs"] else "jobs       none running")
    for job in cluster["jobs"]:
        since = "" if job["seconds"] is None else f"for {duration(job['seconds'])}"
        say(f"           {job['id']}  {job['command']}  {since}".rstrip())
