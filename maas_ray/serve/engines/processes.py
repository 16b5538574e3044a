"""Starting a module of this package as a process: this interpreter, this package, wherever both lie."""

import os
import sys

from maas_ray.version import PACKAGE


def module_command(module: str, *arguments: str) -> list[str]:
    """The command; `-P` keeps the working directory, which may be a user's, from hiding packages."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """The environment in which it finds this same package."""
    root = str(PACKAGE.parent)
    path = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": root if not path else f"{root}{os.pathsep}{path}"}
