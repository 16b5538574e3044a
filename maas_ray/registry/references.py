"""References to model versions, `name@alias`, `name/number` or `name`, and the names that the registry accepts.

MLflow's rules for an alias are stricter than those for a name: no dots, and nothing that could mean a version. They
are checked here, when a spec or an argument is parsed, because MLflow would refuse the alias after the training.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, TypeAdapter, ValidationError, WithJsonSchema

from maas_ray.errors import InvalidError, SpecError
from maas_ray.spec import Name

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_VERSION = re.compile(r"[vV][0-9]+")
_NAME = TypeAdapter(Name)


def _alias(alias: str) -> str:
    if alias.lower() == "latest" or _VERSION.fullmatch(alias):
        raise InvalidError(
            "alias_reserved",
            f"{alias!r} already names a version, in MLflow too; choose a name such as champion. A version is "
            "written NAME/3, the newest one NAME.",
        )
    if not _ALIAS.fullmatch(alias):
        raise InvalidError(
            "alias_invalid",
            f"{alias!r} cannot be an alias in MLflow; use up to 128 letters, digits, `_` and `-`, the first a letter "
            "or a digit, such as prod-1_2.",
        )
    return alias


Alias = Annotated[str, AfterValidator(_alias), WithJsonSchema({"type": "string", "pattern": f"^{_ALIAS.pattern}$"})]
"""A movable name for a version, such as `champion`."""


def parse_reference(reference: str) -> tuple[str, str | None, int | None]:
    """`name@alias`, `name/number` or `name` as (name, alias, number).

    Raises:
        SpecError: it is not of this form, or no version can have the alias.
    """
    name, at, alias = reference.partition("@")
    if at and name and alias:
        return _name(name, reference), check_alias(alias), None
    name, slash, number = reference.partition("/")
    if slash and number.isascii() and number.isdigit():
        return _name(name, reference), None, int(number)
    return _name(reference, reference), None, None


def check_alias(alias: str) -> str:
    """The alias, which the registry must accept.

    Raises:
        SpecError: it is reserved, or is not a name.
    """
    try:
        return _alias(alias)
    except InvalidError as error:
        raise SpecError(f"alias {alias!r}", [str(error)], code=error.code) from None


def _name(name: str, reference: str) -> str:
    try:
        return _NAME.validate_python(name)
    except ValidationError:
        raise SpecError(
            "version",
            [f"{reference!r}: write `name@alias` or `name/number`; names consist of letters, digits, . _ -"],
            code="reference_invalid",
        ) from None


def _reference(reference: str) -> str:
    try:
        parse_reference(reference)
    except SpecError as error:
        raise InvalidError(error.code, "; ".join(error.problems)) from None
    return reference


Reference = Annotated[str, AfterValidator(_reference)]
"""A version: `name@alias`, `name/number`, or `name` for the newest."""
