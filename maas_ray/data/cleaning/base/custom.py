"""Cleaning steps of the user's own code, by import path: `step: "my_module:DropBoilerplate"`.

A user's step is a `CleaningStep`, as the platform's own are. The fields beside `step` are checked against its class.
It travels between processes as its document and the code itself, see `maas_ray.user_code`.
"""

from collections.abc import Mapping
from functools import cache
from inspect import isabstract
from typing import Any

from maas_ray.data.cleaning.base.step import CleaningStep
from maas_ray.errors import DataError
from maas_ray.user_code.binding import bind, parse_bound
from maas_ray.user_code.source import SourceCode, source_of
from maas_ray.user_code.trust import local


@cache
def step_type(path: str, source: SourceCode) -> type[CleaningStep]:
    """The step at an import path in a source.

    Raises:
        DataError: it is not a cleaning step.
    """
    attribute = source.attribute(path)
    if not (isinstance(attribute, type) and issubclass(attribute, CleaningStep)):
        raise DataError(
            f"{path} is not a cleaning step; derive it from maas_ray.data.cleaning.CleaningStep.", code="not_a_step"
        )
    if isabstract(attribute):
        missing = ", ".join(sorted(attribute.__abstractmethods__))
        raise DataError(f"{path} does not define {missing}.", code="abstract_step")
    if source_of(attribute) != source:
        raise DataError(
            f"{attribute.__name__} is defined in {attribute.__module__}, which does not travel; define it in {path}.",
            code="step_elsewhere",
        )
    bind(attribute, source, step_type, "step")
    return attribute


def parse_step(value: Mapping[str, Any]) -> CleaningStep:
    """The step of an entry under `clean:` whose `step` is an import path of the caller's own code.

    Raises:
        InvalidError: the code or a field is wrong.
    """
    step: CleaningStep = parse_bound(step_type, value, "step")
    return step


def load_step(document: Mapping[str, Any], digest: str) -> CleaningStep:
    """A saved step, from the caller's own code, which must be unchanged.

    Raises:
        DataError: the code is missing, or was changed.
    """
    path = document["step"]
    source = local(path)
    if source.digest != digest:
        raise DataError(
            f"the step {path} was saved with other code (digest {digest}, now {source.digest}); new rows would be "
            "cleaned differently from old rows. Prepare all files again with --fresh.",
            code="code_changed",
        )
    return step_type(path, source).parse(document)
