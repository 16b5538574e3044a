"""Steps by import path: `step: "my_module:DropBoilerplate"`, from the user's own code.

A step is a `CleaningStep`, as the platform's own are; what stands beside `step` is checked against its class. It
travels between processes as its document and the code itself, as tasks do (see `maas_ray.user_code`).
"""

from collections.abc import Mapping
from functools import cache
from inspect import isabstract
from typing import Any

from maas_ray.data.cleaning.base import CleaningStep
from maas_ray.errors import DataError
from maas_ray.user_code.binding import bind, parse_bound
from maas_ray.user_code.source import SourceCode, source_of
from maas_ray.user_code.trust import local


@cache
def step_type(path: str, source: SourceCode) -> type[CleaningStep]:
    """The step that an import path means in a source.

    Raises:
        DataError: it means something else.
    """
    found = source.attribute(path)
    if not (isinstance(found, type) and issubclass(found, CleaningStep)):
        raise DataError(f"{path} is no maas_ray.data.cleaning.CleaningStep; derive its class from that.")
    if isabstract(found):
        raise DataError(f"{path} lacks {', '.join(sorted(found.__abstractmethods__))}.")
    if source_of(found) != source:
        raise DataError(f"{found.__name__} stands in {found.__module__}, which does not travel; define it in {path}.")
    bind(found, source, step_type, "step")
    return found


def parse_step(value: Mapping[str, Any]) -> CleaningStep:
    """The step that an item of `clean:` means, if its `step` is an import path of the caller's own code.

    Raises:
        InvalidError: the code or a field is wrong.
    """
    step: CleaningStep = parse_bound(step_type, value, "step")
    return step


def load_step(document: Mapping[str, Any], digest: str) -> CleaningStep:
    """A step that was saved, from the caller's own code, which must be what it was saved with.

    Raises:
        DataError: it is not there, or was changed.
    """
    path = document["step"]
    source = local(path)
    if source.digest != digest:
        raise DataError(
            f"the step {path} was saved with other code (digest {digest}, now {source.digest}); rows that are added "
            "now would be cleaned otherwise than those before. Prepare the dataset anew."
        )
    return step_type(path, source).parse(document)
