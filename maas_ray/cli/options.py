"""The `maas` application, the options that several commands share, and reading a spec from the command line."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maas_ray.cli import completion
from maas_ray.cli.help import Application

if TYPE_CHECKING:
    from maas_ray.settings import Settings

VERBOSE = "MAAS_VERBOSE"
PIPELINE, LOOK, CLUSTER = "From data to an API", "Look", "The cluster"


def _set_verbose(value: bool) -> bool:
    if value:
        os.environ[VERBOSE] = "1"
    return value


def _show_version(value: bool) -> None:
    if value:
        from maas_ray.version import __version__

        typer.echo(f"maas_ray {__version__}")
        raise typer.Exit


SpecFile = Annotated[
    Path,
    typer.Argument(metavar="SPEC", help="YAML file.", show_default=False, autocompletion=completion.spec_files),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a field of the spec. Can be repeated.", show_default=False),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and print what the command would do, without a cluster.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show Ray's own log and tracebacks.", callback=_set_verbose)
]
Gates = Annotated[
    list[str] | None,
    typer.Option(
        "--if",
        metavar="GATE",
        help="Require a condition, such as 'f1 >= champion - 0.005'. Can be repeated.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EndpointName = Annotated[
    str, typer.Argument(help="Name of the endpoint.", show_default=False, autocompletion=completion.endpoints)
]

app = Application(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _maas(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Train, version and serve models on one Ray cluster.

    If no Ray cluster is running, maas starts one on this machine. RAY_ADDRESS
    selects another cluster. Data and models are stored under ~/.maas; change
    that with MAAS_STORAGE, MAAS_MLFLOW and MAAS_DATABASE.

    The usual way:
      maas spec prepare > prepare.yaml   write a spec
      maas prepare prepare.yaml          raw data → a prepared dataset
      maas train train.yaml              a dataset → a registered version
      maas deploy NAME@champion          a version → an API
      maas status                        what is running
    """


def is_file(target: str) -> bool:
    """True if an argument that is either a spec or a version names a file."""
    return target.endswith((".yaml", ".yml")) or Path(target).is_file()


def spec_of(spec_type: Any, target: str, verb: str, overrides: list[str]) -> Any:
    """The spec in a file, or the default spec for a version that is named instead."""
    if is_file(target):
        return spec_type.from_yaml(target, overrides)
    version = f"version={json.dumps(target)}"  # an override, because it has no line in a file
    return spec_type.from_text("", source=f"maas {verb} {target}", overrides=[version, *overrides])


def print_lines(lines: list[str]) -> None:
    """Print the lines of a dry run."""
    from maas_ray.terminal.lines import say

    for line in lines:
        say(line)


def settings() -> "Settings":
    """The settings of this process's environment."""
    from maas_ray.settings import Settings

    return Settings.from_environment()
