"""The reference of specs: every field with type, default, limits and meaning, from the models and their docstrings."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union

import annotated_types
from pydantic import BaseModel, StringConstraints
from pydantic.fields import FieldInfo

from maas_ray.spec.meanings import meaning
from reference.markup import FIELDS, paragraphs, table, yaml

_MAX_LINKS = 4
_SIMPLE = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Any: "anything", type(None): "null"}


def spec_pages() -> dict[str, str]:
    """One page for each spec that a user writes, and for each family that a spec chooses from."""
    from maas_ray import DeploySpec, EvaluateSpec, PredictSpec, PrepareSpec, TrainSpec
    from maas_ray.data.cleaning import STEPS
    from maas_ray.data.sources import FORMATS
    from maas_ray.serve.spec import GatewayArgs, SharedArgs
    from maas_ray.settings import Settings
    from maas_ray.tasks import TASKS

    networks = dict.fromkeys(network for task in TASKS for network in task.networks)
    families: dict[str, tuple[str, Iterable[type[BaseModel]]]] = {
        "sources": ("Sources: entries of `sources:`", FORMATS),
        "cleaning": ("Cleaning steps: entries of `clean:`", STEPS),
        "tasks": ("Tasks: `task:`", [task.spec_type for task in TASKS]),
        "networks": ("Networks: `network:`", networks),
        "prepare": ("`maas prepare`: the spec of a dataset", [PrepareSpec]),
        "train": ("`maas train`: the spec of a training run", [TrainSpec]),
        "evaluate": ("`maas evaluate`: the spec of an evaluation", [EvaluateSpec]),
        "predict": ("`maas predict`: the spec of a batch prediction", [PredictSpec]),
        "deploy": ("`maas deploy`: the spec of an endpoint", [DeploySpec, SharedArgs, GatewayArgs]),
        "settings": ("Settings: environment variables `MAAS_…`", [Settings]),
    }
    home = {model: family for family, (_, models) in families.items() for model in models}
    sections: dict[str, list[type[BaseModel]]] = {}
    for family, (_, models) in families.items():
        sections[family] = []
        for model in models:
            for used in (model, *_models_below(model)):
                if home.setdefault(used, family) == family and used not in sections[family]:
                    sections[family].append(used)
    return {
        f"reference/{family}.md": _spec_page(family, title, sections[family], home)
        for family, (title, _) in families.items()
    }


def _models_below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Every model that a model's fields hold, at any depth."""
    for info in model.model_fields.values():
        for found in _models_in(info.annotation):
            yield found
            yield from _models_below(found)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _spec_page(family: str, title: str, models: Iterable[type[BaseModel]], home: Mapping[type[BaseModel], str]) -> str:
    lines = [f"# {title}", ""]
    for model in models:
        lines += [f"## {_name(model)} {{ #{_anchor(model)} }}", "", *paragraphs(inspect.getdoc(model) or ""), ""]
        lines += table(
            FIELDS,
            (_field_row(model, name, family, home) for name in fields(model)),
        )
    return "\n".join(lines) + "\n"


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields that a user writes."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _field_row(
    model: type[BaseModel], name: str, family: str, home: Mapping[type[BaseModel], str]
) -> tuple[str, str, str, str, str]:
    info = fields(model)[name]
    field = next(field for field, known in model.model_fields.items() if known is info)

    def linked(used: Sequence[type[BaseModel]]) -> str:
        pages = {home[model] for model in used} - {family}
        if len(used) > _MAX_LINKS and len(pages) == 1:
            return f"any of [{(page := pages.pop())}]({page}.md)"
        named = ((f"{home[model]}.md" if home[model] != family else "", model) for model in used)
        return " or ".join(f"[{_name(model)}]({page}#{_anchor(model)})" for page, model in named)

    return (
        f"`{_written(model, name)}`",
        type_of(info.annotation, linked),
        _default(info),
        ", ".join(_limits(info)),
        " ".join(meaning(model, field).split()).replace("None:", "`null`:"),
    )


def _written(model: type[BaseModel], name: str) -> str:
    """A field's name as a user writes it: settings are variables of the environment."""
    from maas_ray.settings import PREFIX, Settings

    return PREFIX + name.upper() if model is Settings else name


def _name(model: type[BaseModel]) -> str:
    """The value of the field that chooses a model among its family, such as `type: bert`; else the class's name."""
    for field in ("type", "format", "step"):
        info = model.model_fields.get(field)
        if info is not None and isinstance(info.default, str):
            return f"`{info.default}`"
    return model.__name__


def _anchor(model: type[BaseModel]) -> str:
    return model.__name__.lower()


def type_of(annotation: Any, linked: Callable[[Sequence[type[BaseModel]]], str]) -> str:
    """A type in words; models are linked."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return linked([annotation])
    if origin is typing.Annotated:
        return type_of(arguments[0], linked)
    if origin is Literal:
        return " or ".join(f"`{yaml(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        models = [argument for argument in arguments if isinstance(argument, type) and issubclass(argument, BaseModel)]
        others = (type_of(argument, linked) for argument in arguments if argument not in models)
        return " or ".join(dict.fromkeys([*([linked(models)] if models else []), *others]))
    if origin in (tuple, list, set, frozenset):
        if origin is tuple and Ellipsis not in arguments:
            return "[" + ", ".join(type_of(argument, linked) for argument in arguments) + "]"
        return f"list of {type_of(arguments[0], linked)}"
    if origin is dict or annotation is dict:
        value = type_of(arguments[1], linked) if arguments else "anything"
        return f"mapping of names to {value}"
    return _SIMPLE.get(annotation) or f"`{getattr(annotation, '__name__', annotation)}`"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True) or "its defaults"
    return f"`{yaml(value)}`"


def _limits(info: FieldInfo) -> Iterator[str]:
    for found in _metadata(info.annotation, info.metadata):
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if isinstance(found, getattr(annotated_types, attribute.capitalize())):
                yield f"{sign} {getattr(found, attribute)}"
        if isinstance(found, annotated_types.MinLen | annotated_types.Len) and found.min_length:
            yield f"length ≥ {found.min_length}"
        if isinstance(found, annotated_types.MaxLen | annotated_types.Len) and found.max_length is not None:
            yield f"length ≤ {found.max_length}"
        if isinstance(found, StringConstraints) and found.pattern:
            yield f"pattern `{found.pattern}`"


def _metadata(annotation: Any, metadata: Iterable[Any]) -> Iterator[Any]:
    """Constraints of a field and, if it is one of several types or a list, those of its parts, each once."""
    seen: dict[str, Any] = {}

    def visit(annotation: Any, metadata: Iterable[Any]) -> None:
        for found in metadata:
            seen.setdefault(repr(found), found)
            if isinstance(found, FieldInfo):
                visit(None, found.metadata)
        for argument in typing.get_args(annotation):
            visit(argument, getattr(argument, "__metadata__", ()))

    visit(annotation, (*metadata, *getattr(annotation, "__metadata__", ())))
    yield from seen.values()
