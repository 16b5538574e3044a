"""The command that shows logs: `logs`."""

from typing import Annotated

import typer

from maas_ray.cli import completion
from maas_ray.cli.options import LOOK, Verbose, app, settings


@app.command(rich_help_panel=LOOK)
def logs(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="An endpoint, a training run, a submitted job, `gateway` or `cluster`.",
            show_default=False,
            autocompletion=completion.log_sources,
        ),
    ] = None,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, metavar="N", help="Print this many last lines.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new lines until Ctrl-C.")] = False,
    verbose: Verbose = False,
) -> None:
    """Show logs of the cluster, or list the sources that have logs.

    An endpoint has the logs of its replicas, a training run those of its
    controller and workers. `gateway` has those of the gateway and the HTTP
    proxies, `cluster` those of Ray's own processes. The logs come from all
    nodes and exist as long as the cluster.

    Examples:
      maas logs
      maas logs stdlib-lm --follow
      maas logs stdlib-lm-1f3a9c02 --tail 20
      maas logs cluster
    """
    from maas_ray.views import logs as view

    if source is None:
        view.show_sources(settings())
    else:
        view.show_logs(settings(), source, tail=tail, follow=follow)
