"""A spec's template: every field with its meaning and its default, as a YAML file to start from.

Required fields have a placeholder. Other fields are commented out, `#name: default`, so that removing one `#` sets
them; comments have a space after the `#`.
"""

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from maas_ray.errors import Problem, SpecError
from maas_ray.spec.fields import TAGS, models_in, tag_of
from maas_ray.spec.meanings import meaning

_WIDTH = 100
_HEADER = "# Remove the # in front of a field to set it. The values shown are the defaults."


def template(model: type[BaseModel], choices: Mapping[str, str], title: str) -> str:
    """A commented YAML file for a spec.

    Args:
        model: the spec's class.
        choices: for fields that are one of several types, such as `task`, the type to show. By default, a required
            field shows the first one.
        title: the first line of the file.

    Raises:
        SpecError: a choice names a field without types, or a type that does not exist.
    """
    problems = list(_wrong(model, choices))
    if problems:
        raise SpecError("--with", problems)
    return "\n".join([f"# {title}", _HEADER, *_fields(model, choices, "", commented=False)]) + "\n"


def _wrong(model: type[BaseModel], choices: Mapping[str, str]) -> Iterator[Problem]:
    for name, choice in choices.items():
        fields = [name for name, info in model.model_fields.items() if _tags(info)]
        if name not in fields:
            yield Problem(f"{name}: not a field with several types; those are: {', '.join(fields)}.", "unknown_field")
        elif choice not in (tags := _tags(model.model_fields[name])):
            yield Problem(f"{name}: unknown type {choice!r}; choose one of {', '.join(tags)}.", "unknown_type")


def _tags(info: FieldInfo) -> list[str]:
    """The types to choose from, if a field holds one of several models."""
    models = models_in(info.annotation)
    return [str(tag) for model in models if (tag := tag_of(model)) is not None] if len(models) > 1 else []


def _fields(model: type[BaseModel], choices: Mapping[str, str], indent: str, *, commented: bool) -> Iterator[str]:
    for name, info in model.model_fields.items():
        if not indent:
            yield ""
        yield from _comment(meaning(model, name), indent)
        tags = _tags(info)
        if tags:
            listing = f"`{_tag_name(info)}` is one of: {', '.join(tags)}."
            yield from _comment(listing, indent)
        is_tag = name in TAGS and isinstance(info.default, str)
        off = commented or not (info.is_required() or name in choices or is_tag)
        mark = "#" if off else ""
        inner = _shown(info, choices.get(name))
        if inner is None:
            yield f"{indent}{mark}{name}: {_value(name, info)}"
        elif _is_list(info):
            yield f"{indent}{mark}{name}:"
            yield from _item(inner, indent + "  ", commented=off)
        else:
            yield f"{indent}{mark}{name}:"
            yield from _fields(inner, {}, indent + "  ", commented=off)


def _item(model: type[BaseModel], indent: str, *, commented: bool) -> Iterator[str]:
    """The fields of a list's only item; the first field that is not a comment carries the dash."""
    dashed = False
    for line in _fields(model, {}, indent + "  ", commented=commented):
        text = line.lstrip()
        if not dashed and not text.startswith("# "):
            mark = "#" if text.startswith("#") else ""
            yield f"{indent}{mark}- {text.removeprefix(mark)}"
            dashed = True
        else:
            yield line


def _shown(info: FieldInfo, choice: str | None) -> type[BaseModel] | None:
    """The model whose fields are shown below a field, or None if the field's default is shown."""
    models = models_in(info.annotation)
    if choice is not None:
        return next(model for model in models if str(tag_of(model)) == choice)
    if not models or (len(models) > 1 and not info.is_required()):
        return None
    return models[0] if info.is_required() or len(models) == 1 else None


def _is_list(info: FieldInfo) -> bool:
    return str(info.annotation).startswith(("tuple[", "list["))


def _tag_name(info: FieldInfo) -> str:
    model = models_in(info.annotation)[0]
    return next(name for name in TAGS if name in model.model_fields)


def _value(name: str, info: FieldInfo) -> str:
    """The default of a field as YAML on one line, or a placeholder."""
    if info.is_required():
        return f"[{name.upper()}]" if _is_list(info) else name.upper()
    value = info.get_default(call_default_factory=True, validated_data={})
    document = json.loads(json.dumps(value, default=lambda other: other.model_dump(mode="json")))
    text = yaml.safe_dump(document, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _comment(text: str, indent: str) -> Iterable[str]:
    text = " ".join(text.split()).replace("None:", "null:")
    width = _WIDTH - len(indent) - 2
    return [f"{indent}# {line}" for line in textwrap.wrap(text, width, break_on_hyphens=False)]
