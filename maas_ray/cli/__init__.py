"""`maas`: the verbs in a terminal, and the way the scripts in `jobs/` call them.

Each module registers the commands of one panel of `maas --help`. Nothing heavy is imported before a command runs.
"""

import sys

# The order of these imports is the order of the help.
# isort: off
from maas_ray.cli import specs as _specs  # noqa: F401
from maas_ray.cli import pipeline as _pipeline  # noqa: F401
from maas_ray.cli import serving as _serving  # noqa: F401
from maas_ray.cli import views as _views  # noqa: F401
from maas_ray.cli import logs as _logs  # noqa: F401
from maas_ray.cli import cluster as _cluster  # noqa: F401

# isort: on
from maas_ray.cli.jobs import run_job as run_job
from maas_ray.cli.options import app as app
from maas_ray.cli.outcome import reported as reported


def main(*command: str) -> None:
    """The `maas` command. Words of a command come before the process's own arguments, as in the scripts in `jobs/`."""
    with reported():
        app([*command, *sys.argv[1:]], prog_name="maas")
