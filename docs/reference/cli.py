"""The reference of the command line, from the help of its commands."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer.main

from reference.markup import table


def cli_page() -> str:
    """Every command of `maas`, as its own help describes it."""
    from maas_ray.cli import app

    return "# The command line\n\n" + "\n".join(_command(typer.main.get_command(app), "maas"))


def _command(command: Any, name: str) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    yield f"## `{name}`\n"
    yield f"```\n{name} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    for block in re.split(r"\n\s*\n", inspect.cleandoc((command.help or "").replace("\b", ""))):
        first, _, rest = block.partition("\n")
        yield f"{first}\n\n```\n{inspect.cleandoc(rest)}\n```\n" if first.endswith(":") and rest else f"{block}\n"
    yield from table(
        ("argument or option", "meaning"), filter(None, (_parameter(one, context) for one in command.params))
    )
    for child, below in sorted(getattr(command, "commands", {}).items()):
        if not below.hidden:
            yield from _command(below, f"{name} {child}")


def _parameter(parameter: Any, context: Any) -> tuple[str, str] | None:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`", " ".join((parameter.help or "").split())
    record = parameter.get_help_record(context)
    return record and (f"`{record[0]}`", " ".join(record[1].split()))
