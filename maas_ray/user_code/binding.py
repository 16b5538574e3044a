"""Specs that user code defines: parsed with errors of the spec, pickled together with their code."""

import copyreg
from collections.abc import Callable, Mapping
from typing import Any

from maas_ray.errors import InvalidError, MaasError, SpecError
from maas_ray.spec import Spec
from maas_ray.user_code import trust
from maas_ray.user_code.source import SourceCode

Find = Callable[[str, SourceCode], Any]
"""Gives the spec's class for an import path in a source."""


def bind(spec_type: Any, source: SourceCode, find: Find, field: str = "type") -> None:
    """Make instances travel between processes as their document and the code.

    Args:
        spec_type: the spec's class; its `own_source` is set.
        source: the code that defines it.
        find: finds the class again in the other process; a function at the top of a module.
        field: the field that holds the import path.
    """
    spec_type.own_source = source
    copyreg.pickle(spec_type, lambda spec: (_rebuild, (find, source, spec.document(), field)))


def _rebuild(find: Find, source: SourceCode, document: dict[str, Any], field: str) -> Any:
    # Another process of this job pickled it. Whoever can make this process unpickle could run anything here anyway.
    trust.vouch([source.digest])
    return find(document[field], source).parse(document)


def parse_bound(find: Find, value: Mapping[str, Any], field: str = "type") -> Any:
    """The spec that a mapping means, if its `field` is an import path of the caller's own code.

    Raises:
        InvalidError: the code or a field is wrong.
    """
    path = value[field]
    try:
        spec: Spec = find(path, trust.local(path)).parse(value)
    except SpecError as error:
        raise InvalidError(error.codes[0], "; ".join(error.problems)) from error
    except MaasError as error:
        raise InvalidError(error.code, f"{field}: {error}") from error
    return spec
