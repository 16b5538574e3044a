"""The commands of the cluster: `up`, `reconcile`, `down`."""

from typing import Annotated

import typer

from maas_ray.cli.options import CLUSTER, Verbose, app, settings


@app.command(rich_help_panel=CLUSTER)
def up(
    num_cpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Set the number of logical CPUs. Default: one for each core, two below 8 cores.",
            show_default=False,
        ),
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Set the number of GPUs. Default: all.", show_default=False)
    ] = None,
    dashboard_port: Annotated[
        int, typer.Option(metavar="PORT", help="Start looking for a free dashboard port here.")
    ] = 8265,
    verbose: Verbose = False,
) -> None:
    """Start a Ray cluster on this machine.

    The other commands start one when they need it. The cluster listens on
    loopback only and requires Ray's token; RAY_AUTH_MODE=disabled turns the
    token off. Recorded endpoints are restored, as by `maas reconcile`.
    Use cluster.yaml and `ray up` for a cluster of several machines.

    Examples:
      maas up
      maas up --num-cpus 8
    """
    from maas_ray import cluster

    cluster.up(settings(), num_cpus=num_cpus, num_gpus=num_gpus, dashboard_port=dashboard_port)
    _reconcile(quiet=True)


@app.command(rich_help_panel=CLUSTER)
def reconcile(verbose: Verbose = False) -> None:
    """Bring the cluster to the desired state, once.

    The desired state is recorded in the platform's database. `reconcile`
    restores missing endpoints, finishes or rolls back interrupted
    deployments, updates the gateway's routes and deletes applications that
    no endpoint needs. It is idempotent: interrupt it and run it again.

    Examples:
      maas reconcile
      maas diff || maas reconcile
    """
    _reconcile()


def _reconcile(*, quiet: bool = False) -> None:
    from maas_ray.serve.deployment.reconciler import reconcile as verb
    from maas_ray.views import endpoints

    outcomes = verb(settings=settings())
    if outcomes or not quiet:
        endpoints.show_outcomes(outcomes)
    if any(outcome.problem for outcome in outcomes):
        raise typer.Exit(1)


@app.command(rich_help_panel=CLUSTER)
def down(verbose: Verbose = False) -> None:
    """Stop the cluster that maas started.

    Datasets, models and the record of endpoints stay.

    Example:
      maas down
    """
    from maas_ray import cluster
    from maas_ray.terminal.lines import say

    for line in cluster.down(settings()) or ["nothing to stop: maas started no cluster here."]:
        say(line)
