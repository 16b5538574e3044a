"""The commands that change what is served: `deploy`, `promote`, `rollback`, `undeploy`, `alias`."""

import json
from typing import Annotated

import typer

from maas_ray.cli import completion
from maas_ray.cli.options import (
    PIPELINE,
    DryRun,
    EndpointName,
    Gates,
    Overrides,
    Verbose,
    app,
    print_lines,
    settings,
    spec_of,
)


@app.command(rich_help_panel=PIPELINE)
def deploy(
    target: Annotated[
        str,
        typer.Argument(
            metavar="SPEC|NAME@ALIAS|NAME/VERSION",
            help="Version to deploy, or a YAML file.",
            show_default=False,
            autocompletion=completion.spec_files,
        ),
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Set the endpoint's name. Default: the model's name.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    verbose: Verbose = False,
) -> None:
    """Serve a version at an endpoint that scales with its load.

    The endpoint answers at /v1/models/NAME/predict and by the Open Inference
    Protocol under /v2; text generation also by OpenAI's API. The new version
    gets traffic after it has answered a smoke request. Until then, and if the
    deployment fails, the previous version keeps serving. Deploying again
    without a change does nothing.

    With replicas=shared, the platform's shared replicas load the version on
    its first request. MAAS_SHARED configures them.

    Examples:
      maas deploy stdlib-lm@champion
      maas deploy digits/3 --endpoint digits-beta --set scaling.max_replicas=2
      maas deploy digits/3 --set replicas=shared
      maas deploy deploy.yaml --dry-run
    """
    from maas_ray.serve.deployment.verbs import deploy as verb
    from maas_ray.serve.spec import DeploySpec
    from maas_ray.views import endpoints

    named = [*(overrides or ()), *([f"endpoint={json.dumps(endpoint)}"] if endpoint else [])]
    parsed = spec_of(DeploySpec, target, "deploy", named)
    if dry_run:
        from maas_ray.serve.deployment.dry_run import dry_run as rehearse

        print_lines(rehearse(parsed))
    else:
        endpoints.show_deployed(verb(parsed))


@app.command(rich_help_panel=PIPELINE)
def promote(
    version: Annotated[str, typer.Argument(metavar="NAME/VERSION|NAME@ALIAS", help="Version.", show_default=False)],
    alias: Annotated[str, typer.Argument(help="Alias, such as champion.", show_default=False)],
    gates: Gates = None,
    verbose: Verbose = False,
) -> None:
    """Point an alias at a version and update its endpoints.

    Every endpoint that was deployed from the alias serves the version: new
    replicas are ready before old ones stop. Either all endpoints and the alias
    move, or nothing does.

    Examples:
      maas promote stdlib-lm/3 champion
      maas promote stdlib-lm@candidate champion --if 'perplexity <= champion * 1.01'
    """
    from maas_ray.registry.versions import Registry
    from maas_ray.serve.deployment.verbs import promote as verb
    from maas_ray.terminal.lines import say
    from maas_ray.views import endpoints

    updated = verb(version, alias, gates=gates or ())
    promoted = Registry(settings()).resolve(version)
    rest = "" if updated else "; no endpoint was deployed from it"
    say(f"{promoted.name}@{alias} is now {promoted.reference}{rest}")
    for endpoint in updated:
        endpoints.show_deployed(endpoint)


@app.command(rich_help_panel=PIPELINE)
def rollback(
    name: EndpointName,
    to: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            help="Choose a number from `maas endpoints NAME`. Default: the previous one.",
            min=1,
            show_default=False,
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Serve an earlier version of an endpoint again.

    The version and its options come from the platform's database. A rollback
    is a deployment like any other: the version is ready before it gets
    traffic, and another rollback undoes it. Aliases stay as they are.

    Examples:
      maas rollback stdlib-lm
      maas rollback stdlib-lm --to 3
    """
    from maas_ray.serve.deployment.verbs import rollback as verb
    from maas_ray.views import endpoints

    endpoints.show_deployed(verb(name, to=to))


@app.command(rich_help_panel=PIPELINE)
def undeploy(name: EndpointName, verbose: Verbose = False) -> None:
    """Remove an endpoint.

    Requests in progress finish first. The version stays registered, but the
    endpoint's history is deleted.

    Example:
      maas undeploy stdlib-lm
    """
    from maas_ray.serve.deployment.verbs import undeploy as verb
    from maas_ray.terminal.lines import say

    verb(name)
    say(f"{name} is no longer served; its version stays registered")


@app.command(rich_help_panel=PIPELINE)
def alias(
    name: Annotated[str, typer.Argument(help="Model.", show_default=False)],
    version: Annotated[int, typer.Argument(help="Number of the version.", show_default=False)],
    alias: Annotated[str, typer.Argument(help="Alias, such as champion or candidate.", show_default=False)],
    gates: Gates = None,
    verbose: Verbose = False,
) -> None:
    """Point an alias at a version.

    Endpoints stay as they are until they are deployed again; `maas promote`
    updates them, too.

    A gate (--if) compares a metric with a number, or with the metric of another
    version: ALIAS, ALIAS - 0.01, ALIAS * 0.99. `f1` is read from the newest
    evaluation, `validation/f1` from that split, which includes the validation
    during training. If a gate does not pass, the alias stays and the exit
    status is 1.

    Examples:
      maas alias stdlib-lm 3 champion
      maas alias digits 4 champion --if 'f1 >= champion - 0.005' --if 'loss < 0.3'
    """
    from maas_ray.registry.gates import pass_gates
    from maas_ray.registry.references import check_alias
    from maas_ray.registry.versions import Registry
    from maas_ray.terminal.lines import say

    check_alias(alias)
    registry = Registry(settings())
    resolved = registry.resolve(f"{name}/{version}")
    pass_gates(registry, resolved, alias, gates or ())
    registry.set_alias(resolved, alias)
    say(f"{name}@{alias} is now {resolved.reference}")
