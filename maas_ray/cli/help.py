"""The look of help: usage as in a manual, `maas diff [OPTIONS] [SPEC]`, and types only for options with a value.

Typer 0.29 writes required arguments as `{SPEC}` and gives every flag the type `<bool>`.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.models import CommandFunctionType


def _plain(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
        elif isinstance(parameter, TyperArgument):
            parameter.display_type_rich = MethodType(lambda self, ctx: "", parameter)  # type: ignore[method-assign]
            if parameter.required:
                parameter.get_usage_pieces = MethodType(  # type: ignore[method-assign]
                    lambda self, ctx: [self.display_name_raw], parameter
                )
    return parameters


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


class Application(typer.Typer):
    """A Typer application whose help is plain."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, **options)

    def command(self, *name: Any, **options: Any) -> Callable[[CommandFunctionType], CommandFunctionType]:
        """Register a command, as `typer.Typer.command` does."""
        return super().command(*name, cls=_Command, **options)
