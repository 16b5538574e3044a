"""The examples in the help of commands are commands that work."""

import re
import shlex

import typer
from typer.testing import CliRunner

from maas_ray.cli import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
EXAMPLES = [
    shlex.split(re.split(r"\s[>|]+\s", line)[0])[1:]
    for command in COMMANDS.values()
    for line in map(str.strip, re.split("Examples?:", command.help or "")[-1].splitlines())
    if line.startswith("maas ")
]


def test_examples_are_commands_with_their_options() -> None:
    for name, *arguments in EXAMPLES:
        COMMANDS[name].make_context(name, list(arguments))  # an unknown option or argument is an error
        if name == "spec":
            answer = CliRunner().invoke(app, [name, *arguments])
            assert answer.exit_code == 0, answer.output


def test_commands_that_need_arguments_have_examples() -> None:
    needed = {name for name, command in COMMANDS.items() if any(one.required for one in command.params)}
    assert needed <= {name for name, *_ in EXAMPLES}
