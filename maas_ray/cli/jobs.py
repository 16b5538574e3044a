"""The command line of the scripts in `jobs/`."""

from collections.abc import Callable
from typing import Any

from maas_ray.cli.help import Application
from maas_ray.cli.options import Overrides, SpecFile, Verbose
from maas_ray.cli.outcome import reported


def run_job(spec_type: Any, verb: Callable[[Any], Any], show: Callable[[Any], None] | None = None) -> None:
    """Read `SPEC [--set a.b=c]...` from the command line and call a verb.

    Args:
        spec_type: the verb's spec.
        verb: called with the spec. Its docstring is the script's help.
        show: called with the verb's result, if the verb does not print it.
    """

    def job(spec: SpecFile, overrides: Overrides = None, verbose: Verbose = False) -> None:
        result = verb(spec_type.from_yaml(spec, overrides or ()))
        if show is not None:
            show(result)

    script = Application(add_completion=False, pretty_exceptions_enable=False)
    script.command(help=verb.__doc__)(job)
    with reported():
        script()
