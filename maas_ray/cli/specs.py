"""The command that shows what a spec can hold: `spec`."""

import json
from importlib import import_module
from typing import Annotated, Any, Literal

import typer

from maas_ray.cli.options import PIPELINE, Verbose, app

_HOMES = {
    "prepare": ("maas_ray.data.spec", "PrepareSpec"),
    "train": ("maas_ray.training.spec", "TrainSpec"),
    "evaluate": ("maas_ray.evaluation.spec", "EvaluateSpec"),
    "predict": ("maas_ray.batch.spec", "PredictSpec"),
    "deploy": ("maas_ray.serve.spec", "DeploySpec"),
}

# A newcomer's likely choice for fields with several types.
_CHOICES = {"task": "text-generation", "sources": "text", "network": "llama"}


@app.command(rich_help_panel=PIPELINE)
def spec(
    command: Annotated[
        Literal["prepare", "train", "evaluate", "predict", "deploy"],
        typer.Argument(
            metavar="prepare|train|evaluate|predict|deploy", help="Command that reads the spec.", show_default=False
        ),
    ],
    choices: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="FIELD=TYPE",
            help="Choose the type of a field to show, such as task=image-classification. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema for editors instead.")] = False,
    verbose: Verbose = False,
) -> None:
    """Print a spec to start from, with every field, its meaning and its default.

    Print the JSON schema with --schema. An editor with a YAML language server
    checks and completes a spec that begins with the line
    `# yaml-language-server: $schema=train.schema.json`.

    Examples:
      maas spec prepare > prepare.yaml
      maas spec prepare --with task=image-classification --with sources=image-folder
      maas spec train --with network=resnet > train.yaml
      maas spec train --schema > train.schema.json
    """
    from maas_ray.spec.template import template

    module, name = _HOMES[command]
    spec_type: Any = getattr(import_module(module), name)
    if schema:
        typer.echo(json.dumps(spec_type.model_json_schema(), indent=2, ensure_ascii=False))
        return
    chosen = {field: value for field, value in _CHOICES.items() if field in spec_type.model_fields}
    for choice in choices or ():
        field, equals, value = choice.partition("=")
        if not equals:
            raise typer.BadParameter(f"{choice!r} must be FIELD=TYPE", param_hint="--with")
        chosen[field] = value
    typer.echo(template(spec_type, chosen, f"Spec of `maas {command}`."), nl=False)
