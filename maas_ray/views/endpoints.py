"""Endpoints, their history, and differences from the desired state, for a person or as JSON."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from maas_ray.settings import Settings, exists
from maas_ray.tasks import find_task
from maas_ray.terminal.lines import new_table, print_json, say, show_table

if TYPE_CHECKING:
    from maas_ray.serve.deployment.drift import Difference
    from maas_ray.serve.deployment.reconcile import Outcome
    from maas_ray.serve.deployment.verbs import Endpoint


def show_endpoints(settings: Settings, *, as_json: bool = False) -> None:
    """Print all endpoints."""
    endpoints = listed(settings)
    if as_json:
        print_json([asdict(endpoint) for endpoint in endpoints])
    elif endpoints:
        show_table(_endpoints_table(endpoints))
    else:
        say("endpoints  none; `maas deploy NAME@ALIAS` creates one")


def show_history(settings: Settings, name: str, *, as_json: bool = False) -> None:
    """Print the versions that an endpoint has served, newest first; as JSON with their specs.

    Raises:
        NotFoundError: the endpoint does not exist.
    """
    from maas_ray.serve.deployment.verbs import history

    served = history(name, settings=settings)
    if as_json:
        print_json([asdict(entry) for entry in served])
        return
    if not served:
        say(f"{name} has not served a version yet")
        return
    table = new_table("NUMBER", "VERSION", "DEPLOYED FROM", "SINCE")
    for entry in served:
        since = f"{entry.since.astimezone():%Y-%m-%d %H:%M:%S}"
        table.add_row(str(entry.number), entry.version, entry.spec.get("version", ""), since)
    show_table(table)


def show_differences(differences: "list[Difference]", *, as_json: bool = False) -> None:
    """Print differences between the desired state and the cluster."""
    if as_json:
        print_json([asdict(difference) for difference in differences])
    elif not differences:
        say("no differences")
    else:
        table = new_table("ENDPOINT", "WHAT", "SHOULD BE", "IS")
        for difference in differences:
            table.add_row(difference.endpoint, difference.what, difference.should, difference.found)
        show_table(table)


def show_outcomes(outcomes: "list[Outcome]") -> None:
    """Print what a reconciliation changed."""
    if not outcomes:
        say("the cluster is in the desired state; nothing to do")
    for outcome in outcomes:
        say(f"{outcome.endpoint} {outcome.done}" + (f": {outcome.problem}" if outcome.problem else ""))


def show_deployed(endpoint: "Endpoint") -> None:
    """Print the URL of an endpoint that was just deployed, with a command to try."""
    say(f"{endpoint.name} serves {endpoint.version} at {endpoint.url}")
    if endpoint.task == "text-generation":
        say(f"  engine: {endpoint.engine}")
        for adapter, version in endpoint.adapters.items():
            say(f"  {endpoint.name}:{adapter} is {version}")
        body = json.dumps({"model": endpoint.name, "prompt": "Once", "max_tokens": 32})
        say(f"  curl {endpoint.url}/v1/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}")
    else:
        url = f"{endpoint.url}/v1/models/{endpoint.name}/predict"
        row = json.dumps(endpoint.sample, ensure_ascii=False) if endpoint.sample else "{…}"
        say(f"  curl {url} -d {shlex.quote(row)}")
        if (kind := find_task(endpoint.task)) is not None and kind.file:
            say(f"  curl {url} -F file=@PATH")


def listed(settings: Settings) -> "list[Endpoint]":
    """All endpoints; none if the platform's database does not exist, because listing must not create it."""
    from maas_ray.serve.deployment.verbs import endpoints

    return endpoints(settings=settings) if exists(settings.database) else []


def _endpoints_table(endpoints: Iterable["Endpoint"]) -> Table:
    table = new_table("ENDPOINT", "VERSION", "STATE", "REPLICAS", "ENGINE", "URL")
    for endpoint in endpoints:
        replicas = f"{endpoint.replicas}{' shared' if endpoint.shared else ''}"
        table.add_row(endpoint.name, endpoint.version, endpoint.state, replicas, endpoint.engine, endpoint.url)
        for adapter, version in endpoint.adapters.items():
            table.add_row(f"{endpoint.name}:{adapter}", version, "", "", "", "")
    return table
