"""The cleaning steps, by name. A new one is a module here, or a class in one: it is found by itself.

One of the user's own is named by its import path, `package.module:Name`.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from inspect import isabstract
from typing import TYPE_CHECKING

from pydantic import SerializeAsAny

from maas_ray.data.cleaning.base import CleaningStep, Dropped, Notes, changed, clean_row, value


def _found() -> Iterator[type[CleaningStep]]:
    for module in pkgutil.iter_modules(__path__):
        for made in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(made, type) and issubclass(made, CleaningStep) and not isabstract(made):
                yield made


STEPS: tuple[type[CleaningStep], ...] = tuple(dict.fromkeys(_found()))

if TYPE_CHECKING:
    AnyStep = CleaningStep
else:
    AnyStep = SerializeAsAny[CleaningStep]

__all__ = ["STEPS", "AnyStep", "CleaningStep", "Dropped", "Notes", "changed", "clean_row", "value"]
