"""Commands that run a module of this package in a process, with the same interpreter and the same package."""

import os
import sys

from maas_ray.version import PACKAGE


def module_command(module: str, *arguments: str) -> list[str]:
    """The command. With `-P`, modules in the working directory, which may be a user's, cannot hide packages."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """The environment in which the process imports this same package."""
    root = str(PACKAGE.parent)
    path = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": root if not path else f"{root}{os.pathsep}{path}"}
