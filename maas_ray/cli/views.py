"""The commands that show and change nothing: `data`, `models`, `runs`, `endpoints`, `diff`, `status`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from maas_ray.cli import completion
from maas_ray.cli.options import LOOK, Json, Overrides, Verbose, app, settings


@app.command(name="data", rich_help_panel=LOOK)
def data_(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            help="Dataset to show: NAME, NAME/FINGERPRINT or a URI.",
            show_default=False,
            autocompletion=completion.datasets,
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            metavar="N",
            help="Show this many rows of each kind. Default: 3, or 12 with --html.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write a report for a browser.", show_default=False),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List datasets, or show one dataset.

    One dataset is shown with its rows by split, dropped rows by reason, changes
    by cleaning, lengths, labels, columns, examples, duplicates beside their
    originals, and quarantined rows with their errors. All of it, with plots,
    goes into one file with --html.

    Examples:
      maas data
      maas data stdlib
      maas data digits --html digits.html
      maas data digits --json | jq .counts
    """
    from maas_ray.views.dataset import text

    if name is None:
        if html is not None:
            raise typer.BadParameter("requires a dataset: maas data DATASET --html FILE", param_hint="--html")
        text.show_datasets(settings(), as_json=as_json)
        return
    look = text.open_summary(settings(), name, examples or (3 if html is None else 12))
    if html is not None:
        from maas_ray.views.dataset.html import write

        write(look, html)
    if as_json:
        print(json.dumps(text.document(look), indent=2))
    elif html is not None:
        typer.echo(f"report  {html}")
    else:
        text.show(look)


@app.command(rich_help_panel=LOOK)
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|NAME/VERSION|NAME@ALIAS",
            help="Model whose versions to show, or one version.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List models, or show a model's versions with metrics and lineage.

    The newest version is shown with the spec that it was trained by, including
    defaults; --json prints the spec of every version. A single version is shown
    with its evaluations: intervals, tables and slices. MLflow's client and web
    interface show the same models.

    Examples:
      maas models
      maas models stdlib-lm
      maas models stdlib-lm@champion
      maas models --json | jq '.[].reference'
    """
    from maas_ray.views import models as view

    view.show_models(settings(), name, as_json=as_json)


@app.command(rich_help_panel=LOOK)
def runs(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="Run to show: its name, or the start of its MLflow run id.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="List at most this many.")] = 20,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write the run's curves as an image.", show_default=False),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List training runs, newest first, or show one run with its curves.

    One run is shown with its parameters, last metrics, the time of each phase,
    and curves of loss, learning rate and throughput.

    Examples:
      maas runs
      maas runs stdlib-lm-1f3a9c02
      maas runs stdlib-lm-1f3a9c02 --png curves.png
      maas runs --json | jq '.[] | select(.state == "failed").name'
    """
    from maas_ray.views import runs as view

    if run is not None:
        view.show_run(settings(), run, as_json=as_json, png=png)
    elif png is not None:
        raise typer.BadParameter("requires a run: maas runs RUN --png FILE", param_hint="--png")
    else:
        view.show_runs(settings(), limit, as_json=as_json)


@app.command(name="endpoints", rich_help_panel=LOOK)
def endpoints_(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="ENDPOINT",
            help="Endpoint whose history to show.",
            show_default=False,
            autocompletion=completion.endpoints,
        ),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List endpoints, or show the history of one endpoint.

    The list has the version, state, replicas, engine and URL of each endpoint.
    The history has the versions of one endpoint, newest first, with the
    numbers that `maas rollback --to` takes.

    Examples:
      maas endpoints
      maas endpoints stdlib-lm
    """
    from maas_ray.views import endpoints as view

    if name is None:
        view.show_endpoints(settings(), as_json=as_json)
    else:
        view.show_history(settings(), name, as_json=as_json)


@app.command(rich_help_panel=LOOK)
def diff(
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="SPEC", help="YAML file to compare.", show_default=False, autocompletion=completion.spec_files
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show differences between the desired state and the cluster.

    Without a spec, the differences are endpoints that are missing, failed, half
    deployed or serving another version than recorded, routes of the gateway
    that differ, and applications that no endpoint needs. `maas reconcile`
    removes them. With a spec, they are the changes that `maas deploy SPEC`
    would make.

    The exit status is 0 if nothing differs, 1 if something does or an error
    occurs, and 2 if the spec is wrong.

    Examples:
      maas diff
      maas diff deploy.yaml
    """
    from maas_ray.serve.deployment.verbs import diff as verb
    from maas_ray.serve.spec import DeploySpec
    from maas_ray.views import endpoints

    differences = verb(None if spec is None else DeploySpec.from_yaml(spec, overrides or ()))
    endpoints.show_differences(differences, as_json=as_json)
    if differences:
        raise typer.Exit(1)


@app.command(name="status", rich_help_panel=LOOK)
def status_(as_json: Json = False, verbose: Verbose = False) -> None:
    """Show the cluster, jobs, models and endpoints on one screen.

    This command never starts a cluster.

    Examples:
      maas status
      maas status --json | jq .cluster.address
    """
    from maas_ray.views import status as view

    view.show_status(settings(), as_json=as_json)
