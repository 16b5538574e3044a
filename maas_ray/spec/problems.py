"""The problems of a document, in one line each: line, field, what is wrong, value, fix."""

import copy
import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from maas_ray.errors import MaasError, Problem
from maas_ray.spec.document import line_of, shown
from maas_ray.spec.fields import models_in, tag_of

_WANTED = "Input should be "


def _code(detail: ErrorDetails) -> str:
    """The code that a validator gave its error, or pydantic's own, such as `missing` or `extra_forbidden`."""
    raised = detail.get("ctx", {}).get("error")
    return (raised.code if isinstance(raised, MaasError) else None) or detail["type"]


def placed(problem: str, field: str, line: int | None) -> Problem:
    """A problem that names its field and its line."""
    named = problem if problem.startswith((f"{field}:", f"{field}.", f"{field}[")) else f"{field}: {problem}"
    return Problem((f"line {line}: " if line else "") + named, getattr(problem, "code", None))


def problems_of(cls: type[BaseModel], data: dict[str, Any], lines: dict[tuple[Any, ...], int]) -> list[Problem]:
    """All problems of a document, one line each.

    Pydantic checks rules across fields only if every field is valid. So a wrong field is removed, its default takes
    its place, and the document is checked again.
    """
    problems: dict[Problem, None] = {}
    doubtful: set[str] = set()
    data = copy.deepcopy(data)
    while details := _errors(cls, data):
        wrong: dict[tuple[Any, ...], None] = {}
        meant: set[str] = set()
        for detail in _merged(details, data):
            path, problem = _plain(detail, data), _problem(cls, detail, data)
            wrong[_key(path)] = None
            meant.update(_meant(cls, detail))
            # A field that is missing now, or contradicts a default that took a place, is not the user's mistake.
            if not doubtful or (detail["type"] != "missing" and doubtful.isdisjoint(re.findall(r"\w+", problem))):
                line = line_of(path, lines)
                problems[Problem((f"line {line}: " if line else "") + problem, _code(detail))] = None
        removed = {name for path in wrong if (name := _remove(data, path))}
        if not removed:
            break
        doubtful |= removed | meant
    return list(problems)


def _errors(cls: type[BaseModel], data: dict[str, Any]) -> list[ErrorDetails]:
    try:
        cls.model_validate(data)
    except ValidationError as error:
        return _meaningful(error.errors(include_url=False))
    return []


def _key(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The path of the field that a value belongs to, because an item is not removed from its list."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    return path


def _remove(document: Any, path: tuple[Any, ...]) -> str | None:
    """Remove a field, or the field around it if it is absent. Returns the name of the removed field."""
    if not path:
        return None
    holder = document
    try:
        for part in path[:-1]:
            holder = holder[part]
        del holder[path[-1]]
    except KeyError:
        return _remove(document, _key(path[:-1]))
    except (IndexError, TypeError):
        return None
    return str(path[-1])


def _plain(detail: ErrorDetails, data: Any) -> tuple[Any, ...]:
    """The path of an error in the document: pydantic's location without the tags of unions between keys."""
    path: list[Any] = []
    missing = detail["type"] == "missing"
    for index, part in enumerate(detail["loc"]):
        if isinstance(data, dict) and (part in data or (missing and index == len(detail["loc"]) - 1)):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part] if part < len(data) else None
        else:
            continue
        path.append(part)
    return tuple(path)


def _problem(cls: type[BaseModel], detail: ErrorDetails, data: dict[str, Any]) -> str:
    """One line: field, what is wrong, value, fix."""
    path = _plain(detail, data)
    field = _dotted(path)
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _fields_at(cls, tuple(detail["loc"][:-1]))
        near = _meant(cls, detail)
        fix = f"did you mean `{near[0]}`?" if near else f"known fields: {', '.join(known)}."
        return f"{field}: there is no such field; {fix}"
    if kind == "missing":
        return f"{field}: is missing; add it."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _tag_problem(cls, detail, field)
    if kind in ("model_type", "model_attributes_type"):
        known = _fields_at(cls, tuple(detail["loc"]))
        return f"{field}: holds {shown(detail['input'])}; write it as `field: value` lines. Fields: {', '.join(known)}."
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("value_error", "assertion_error"):
        return f"{field}: {message}" if field else message
    message = message[0].lower() + message[1:]
    message = message.replace("string should match pattern", "must match the pattern")
    return f"{field}: {message} (found {shown(detail['input'])})"


def _meant(cls: type[BaseModel], detail: ErrorDetails) -> list[str]:
    """The known field that is spelled most like an unknown one."""
    if detail["type"] != "extra_forbidden":
        return []
    *outer, name = detail["loc"]
    near = closest(str(name), _fields_at(cls, tuple(outer)))
    return [near] if near else []


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most likely meant, or None: one that begins with the name, or is spelled much like it."""
    known = list(known)
    longer = [other for other in known if other.startswith(name)]
    return next(iter(longer or difflib.get_close_matches(name, known, n=1, cutoff=0.7)), None)


def _tag_problem(cls: type[BaseModel], detail: ErrorDetails, field: str) -> str:
    """The problem of a union's `type:` that is unknown or missing."""
    tags = [str(tag_of(model)) for model in _models_at(cls, tuple(detail["loc"]))]
    context = detail.get("ctx", {})
    tag_field = str(context.get("discriminator", "type")).strip("'")
    if "tag" not in context:
        return f"{field}.{tag_field}: is missing; choose one of {', '.join(tags)}."
    near = closest(str(context["tag"]), tags)
    hint = f" Did you mean {near}?" if near else ""
    return f"{field}.{tag_field}: {context['tag']!r} is not known; choose one of {', '.join(tags)}.{hint}"


def _meaningful(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Errors without those of defaults, and of a union's other branches: a mapping is not a misspelled string."""
    return [
        detail
        for detail in details
        if detail["type"] != "default_factory_not_called"  # a default that needs a field which is wrong
        and not (
            detail["type"].endswith("_type")
            and isinstance(detail["input"], dict)
            and any(
                other is not detail and other["loc"][: len(detail["loc"]) - 1] == detail["loc"][:-1]
                for other in details
            )
        )
    ]


def _merged(details: list[ErrorDetails], data: dict[str, Any]) -> list[ErrorDetails]:
    """Errors with one for each value that fits none of several types: "a valid integer or a valid list"."""
    merged: dict[Any, ErrorDetails] = {}
    for index, detail in enumerate(details):
        wanted = detail["msg"].removeprefix(_WANTED).partition(",")[0].replace("valid tuple", "valid list")
        typed = detail["msg"].startswith(_WANTED)
        path: Any = _plain(detail, data) if typed else index
        first = merged.setdefault(path, detail)
        if typed and first is not detail:
            merged[path] = first | {"msg": f"{first['msg'].partition(',')[0]} or {wanted}"}
    return list(merged.values())


def _dotted(loc: tuple[Any, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _fields_at(cls: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The names of the fields that are allowed at a location of a spec."""
    return sorted({name for model in _models_at(cls, loc) for name in model.model_fields})


def _models_at(cls: type[BaseModel], loc: tuple[Any, ...]) -> list[type[BaseModel]]:
    """The specs that are allowed at a location of a spec."""
    candidates: list[type[BaseModel]] = [cls]
    for part in loc:
        if isinstance(part, int):
            continue
        inside = [
            model
            for candidate in candidates
            if part in candidate.model_fields
            for model in models_in(candidate.model_fields[part].annotation)
        ]
        tagged = [model for model in candidates if tag_of(model) == part]
        candidates = inside or tagged or candidates
    return candidates
