"""Contradictions between the spec and the DeepSpeed document.

A field of the document that holds a value must agree with the spec if the spec sets its own field explicitly.
Otherwise the document's value is used as it stands.
"""

from maas_ray.errors import InvalidError, Problem
from maas_ray.training.deepspeed.batch import check_batch
from maas_ray.training.deepspeed.document import AUTO, value_at
from maas_ray.training.deepspeed.fields import PARAMETERS, PRECISIONS, SAME
from maas_ray.training.deepspeed.sections import problems_of
from maas_ray.training.hyperparameters import Hyperparameters


def check_agreement(spec: Hyperparameters) -> None:
    """Refuse a document that contradicts the spec.

    Raises:
        InvalidError: names both fields and both values.
    """
    if problems := problems_of(spec.deepspeed):
        raise InvalidError(problems[0].code, "\n  ".join(problems))
    problems = [*_differing_values(spec), *_differing_precision(spec), *_unsupported(spec)]
    if problems:
        raise InvalidError(problems[0].code, "\n  ".join(problems))
    check_batch(spec)


def _differing_values(spec: Hyperparameters) -> list[Problem]:
    problems = []
    for path, field in SAME.items():
        theirs, ours = value_at(spec.deepspeed, path), getattr(spec, field)
        if theirs in (None, AUTO) or field not in spec.model_fields_set or ours is None:
            continue
        if (list(ours) if isinstance(ours, tuple) else ours) != theirs:
            text = (
                f"{field} is {ours!r}, but deepspeed.{'.'.join(path)} is {theirs!r}. "
                f'Remove one, or write "auto" in the DeepSpeed configuration.'
            )
            problems.append(Problem(text, "deepspeed_contradiction"))
    return problems


def _differing_precision(spec: Hyperparameters) -> list[Problem]:
    problems = []
    for name in PRECISIONS:
        enabled = value_at(spec.deepspeed, (name, "enabled"))
        if isinstance(enabled, bool) and "precision" in spec.model_fields_set and enabled != (spec.precision == name):
            state = str(enabled).lower()
            text = f"precision is {spec.precision!r}, but deepspeed.{name}.enabled is {state}. Remove one."
            problems.append(Problem(text, "deepspeed_contradiction"))
    return problems


def _unsupported(spec: Hyperparameters) -> list[Problem]:
    """Fields set in the spec that the document's optimizer or scheduler does not have."""
    supported: dict[tuple[str, str], bool] = {}
    for (block, *_, key), field in ((path, field) for path, field in SAME.items() if len(path) > 1):
        parameters = PARAMETERS[block].get(str(value_at(spec.deepspeed, (block, "type"))).lower())
        # A scheduler without a learning rate of its own scales the optimizer's, and every optimizer has one.
        if parameters is not None and field in spec.model_fields_set and field != "learning_rate":
            supported[block, field] = supported.get((block, field), False) or key in parameters
    return [
        Problem(
            f"{field} is {getattr(spec, field)!r}, but deepspeed.{block}.type is {spec.deepspeed[block]['type']!r}, "
            f"which does not have it. Remove one.",
            "deepspeed_unsupported",
        )
        for (block, field), is_supported in supported.items()
        if not is_supported
    ]
