"""Steps by import path: `step: "my_module:DropBoilerplate"`, from the user's own code.

A step is a `CleaningStep`, as the platform's own are; what stands beside `step` is checked against its class. It
travels between processes as its document and the code itself, as tasks do (see `maas_ray.tasks.custom.source`).
"""

import copyreg
from collections.abc import Mapping
from functools import cache
from inspect import isabstract
from typing import Any

from maas_ray.data.cleaning.base import CleaningStep
from maas_ray.errors import DataError, MaasError, SpecError
from maas_ray.tasks.custom import source as sources
from maas_ray.tasks.custom.source import Source


@cache
def step_type(path: str, source: Source) -> type[CleaningStep]:
    """The step that an import path means in a source.

    Raises:
        DataError: it means something else.
    """
    found = source.attribute(path)
    if not (isinstance(found, type) and issubclass(found, CleaningStep)):
        raise DataError(f"{path} is no maas_ray.data.cleaning.CleaningStep; derive its class from that.")
    if isabstract(found):
        raise DataError(f"{path} lacks {', '.join(sorted(found.__abstractmethods__))}.")
    if sources.source_of(found) != source:
        raise DataError(f"{found.__name__} stands in {found.__module__}, which does not travel; define it in {path}.")
    found.own_source = source
    copyreg.pickle(found, _reduced)
    return found


def _reduced(step: CleaningStep) -> tuple[Any, ...]:
    return _rebuilt, (step.own_source, step.document())


def _rebuilt(source: Source, document: dict[str, Any]) -> CleaningStep:
    """In another process of the job. Who could make this process call it could run anything here anyway."""
    sources.vouch([source.digest])
    return step_type(document["step"], source).parse(document)


def parse_step(value: Mapping[str, Any]) -> CleaningStep:
    """What stands under `clean:`, its step an import path of the caller's own code.

    Raises:
        ValueError: it is wrong; says how.
    """
    path = value["step"]
    try:
        return step_type(path, sources.local(path)).parse(value)
    except SpecError as error:
        raise ValueError("; ".join(error.problems)) from error
    except MaasError as error:
        raise ValueError(f"step: {error}") from error


def load_step(document: Mapping[str, Any], digest: str) -> CleaningStep:
    """A step that was saved, from the caller's own code, which must be what it was saved with.

    Raises:
        DataError: it is not there, or was changed.
    """
    path = document["step"]
    source = sources.local(path)
    if source.digest != digest:
        raise DataError(
            f"the step {path} was saved with other code (digest {digest}, now {source.digest}); rows that are added "
            "now would be cleaned otherwise than those before. Prepare the dataset anew."
        )
    return step_type(path, source).parse(document)
