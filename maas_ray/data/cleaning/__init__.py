"""The cleaning steps: a module for each, found by itself. `base` has the parts that a new step is made of.

A step of the user's own is named by its import path, `package.module:Name`; see `base.custom`.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from inspect import isabstract
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, SerializeAsAny, WrapValidator

from maas_ray.data.cleaning.base import CleaningStep, Dropped, Notes, changed, value
from maas_ray.data.cleaning.base.custom import load_step, parse_step
from maas_ray.errors import InvalidError
from maas_ray.spec import Spec
from maas_ray.spec.fields import user_type
from maas_ray.tasks.rows import Row
from maas_ray.user_code.source import is_import_path


def _steps() -> Iterator[type[CleaningStep]]:
    for module in pkgutil.iter_modules(__path__):
        for attribute in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(attribute, type) and issubclass(attribute, CleaningStep) and not isabstract(attribute):
                yield attribute


STEPS: tuple[type[CleaningStep], ...] = tuple(dict.fromkeys(_steps()))
"""All steps of the platform."""


def _step(given: Any, known: Any) -> Any:
    own = isinstance(given, dict) and is_import_path(given.get("step"))
    return parse_step(given) if own else given if getattr(given, "own_source", None) else known(given)


if TYPE_CHECKING:
    AnyStep = CleaningStep
else:
    _Known = Annotated[Union[STEPS], Field(discriminator="step")]  # noqa: UP007
    AnyStep = Annotated[SerializeAsAny[_Known], WrapValidator(_step, json_schema_input_type=_Known | user_type("step"))]


class _Document(Spec):
    step: AnyStep


def clean_row(steps: Iterable[CleaningStep], row: Row, notes: Notes) -> Row:
    """A row after steps, one after the other.

    Args:
        steps: the steps, fitted if they need it.
        row: the row as the source gave it.
        notes: counts the changes by step, if the row passes all steps.

    Raises:
        Dropped: a step dropped the row, such as `length: too few words`.
        InvalidError: the row, or a step, is broken; names the step.
    """
    gathered = Notes()
    for step in steps:
        own = Notes()
        try:
            row = step.clean(row, own)
            if not isinstance(row, dict):
                raise TypeError(f"clean() returned a {type(row).__name__}, not a row")
        except Dropped as reason:
            raise Dropped(f"{step.step}: {reason}") from None
        except MemoryError:
            raise
        except ValueError as error:
            raise InvalidError(getattr(error, "code", "step_failed"), f"step {step.step}: {error}") from error
        except Exception as error:  # an error in a user's own code costs its row only
            raise InvalidError("step_failed", f"step {step.step}: {type(error).__name__}: {error}") from error
        for words, count in own.items():
            gathered[f"{step.step}: {words}"] += count
    notes.update(gathered)
    return row


def saved(steps: Iterable[CleaningStep]) -> list[dict[str, Any]]:
    """Steps as JSON for a manifest: their documents, which contain fitted statistics, and the digests of own code."""
    return [
        {"step": step.document()} | ({"source": step.own_source.digest} if step.own_source is not None else {})
        for step in steps
    ]


def loaded(documents: Iterable[Mapping[str, Any]]) -> tuple[CleaningStep, ...]:
    """The inverse of `saved`. The user's own code is taken from the import path, and must be unchanged.

    Raises:
        DataError: the code was changed.
        SpecError: a document is not of `saved`.
    """
    return tuple(
        load_step(document["step"], document["source"])
        if "source" in document
        else _Document.parse({"step": document["step"]}, source="saved cleaning steps").step
        for document in documents
    )


__all__ = [
    "STEPS",
    "AnyStep",
    "CleaningStep",
    "Dropped",
    "Notes",
    "changed",
    "clean_row",
    "loaded",
    "saved",
    "value",
]
