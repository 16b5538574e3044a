"""The cleaning steps, by name. A new one is a module here, or a class in one: it is found by itself.

One of the user's own is named by its import path, `package.module:Name`; see `own`.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from inspect import isabstract
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, SerializeAsAny, WrapValidator

from maas_ray.data.cleaning.base import CleaningStep, Dropped, Notes, changed, value
from maas_ray.data.cleaning.own import load_step, parse_step
from maas_ray.spec import Spec
from maas_ray.tasks.rows import Row
from maas_ray.user_code.source import is_import_path


def _found() -> Iterator[type[CleaningStep]]:
    for module in pkgutil.iter_modules(__path__):
        for made in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(made, type) and issubclass(made, CleaningStep) and not isabstract(made):
                yield made


STEPS: tuple[type[CleaningStep], ...] = tuple(dict.fromkeys(_found()))


def _step(given: Any, known: Any) -> Any:
    own = isinstance(given, dict) and is_import_path(given.get("step"))
    return parse_step(given) if own else given if getattr(given, "own_source", None) else known(given)


if TYPE_CHECKING:
    AnyStep = CleaningStep
else:
    _Known = Annotated[Union[STEPS], Field(discriminator="step")]  # noqa: UP007
    AnyStep = Annotated[SerializeAsAny[_Known], WrapValidator(_step)]


class _Document(Spec):
    step: AnyStep


def clean_row(steps: Iterable[CleaningStep], row: Row, notes: Notes) -> Row:
    """A row as it comes out of steps, one after the other.

    Args:
        steps: those that are fitted have been.
        row: as the source gave it.
        notes: what the steps changed is counted here, by step, where the row comes through all of them.

    Raises:
        Dropped: a step leaves it out: `length: too few words`.
        ValueError: it is broken, or a step is; names the step.
    """
    gathered = Notes()
    for step in steps:
        own = Notes()
        try:
            row = step.clean(row, own)
            if not isinstance(row, dict):
                raise TypeError(f"clean() gave a {type(row).__name__}, not a row")
        except Dropped as reason:
            raise Dropped(f"{step.step}: {reason}") from None
        except MemoryError:
            raise
        except ValueError as error:
            raise ValueError(f"step {step.step}: {error}") from error
        except Exception as error:  # whatever a user's own code meets: that row is quarantined
            raise ValueError(f"step {step.step}: {type(error).__name__}: {error}") from error
        for words, count in own.items():
            gathered[f"{step.step}: {words}"] += count
    notes.update(gathered)
    return row


def saved(steps: Iterable[CleaningStep]) -> list[dict[str, Any]]:
    """Steps as JSON for a manifest: their documents, which hold what they were fitted with, and the digests of code."""
    return [
        {"step": step.document()} | ({"source": step.own_source.digest} if step.own_source is not None else {})
        for step in steps
    ]


def loaded(documents: Iterable[Mapping[str, Any]]) -> tuple[CleaningStep, ...]:
    """The opposite of `saved`. The user's own code is taken from the import path, and must be the same.

    Raises:
        DataError: it is not.
        SpecError: it is nothing that `saved` gave.
    """
    return tuple(
        load_step(one["step"], one["source"])
        if "source" in one
        else _Document.parse({"step": one["step"]}, source="saved cleaning steps").step
        for one in documents
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
