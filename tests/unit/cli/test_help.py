"""Help teaches each command, and commands work on an empty platform."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from maas_ray.settings import Settings
from tests.support.terminal import Run, fails

COMMANDS = [
    "prepare",
    "train",
    "evaluate",
    "predict",
    "deploy",
    "promote",
    "rollback",
    "undeploy",
    "alias",
    "data",
    "models",
    "runs",
    "endpoints",
    "diff",
    "status",
    "up",
    "reconcile",
    "down",
    "spec",
    "logs",
]


def test_help_answers_at_once() -> None:
    large = {"numpy", "pandas", "pyarrow", "pydantic", "fsspec", "ray", "torch", "transformers", "mlflow", "sqlalchemy"}
    code = f"""
import atexit, sys
from maas_ray.cli import main
atexit.register(lambda: print(sorted({large!r} & sys.modules.keys())))
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "maas prepare" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_command_and_shows_the_way(maas: Run) -> None:
    _, out, _ = maas("--help")

    for command in COMMANDS:
        assert re.search(rf"│ {command} +\w", out), command
    assert out.index("maas prepare") < out.index("maas train") < out.index("maas deploy") < out.index("maas status")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_teaches(maas: Run, command: str) -> None:
    _, out, _ = maas(command, "--help")

    assert f"Usage: maas {command}" in out
    assert re.search(rf"(?m)^   (.* )?maas {command}\b", out), "an example"
    assert "<bool>" not in out
    assert "{" not in out.splitlines()[1]


def test_version(maas: Run) -> None:
    from maas_ray import __version__

    assert maas("--version") == (0, f"maas_ray {__version__}\n", "")


def test_a_misspelled_command_is_suggested(maas: Run) -> None:
    status, _, err = maas("trian")

    assert status == 2
    assert "Did you mean 'train'?" in err


def test_commands_on_an_empty_platform_print_one_line_and_create_no_files(maas: Run, settings: Settings) -> None:
    for command in ("models", "runs", "endpoints", "diff", "reconcile", "down"):
        status, out, err = maas(command)
        assert status == 0, err
        assert len(out.splitlines()) == 1

    for command in ("models", "runs", "endpoints", "diff"):
        assert maas(command, "--json") == (0, "[]\n", "")
    for command in ("runs", "endpoints", "rollback"):
        assert fails(maas(command, "x"), "'x'")
    assert {path.name for path in Path(settings.home).iterdir()} <= {"cluster.lock"}
