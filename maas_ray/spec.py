"""The base of every spec: one YAML document, parsed strictly, with errors a person can act on.

A spec is frozen, refuses unknown fields, and is checked whole before anything starts. All problems of a
file are reported at once, each with its line, the field, the value seen and the fix. It remembers where it
was read, so that what only a verb can find wrong is reported the same way. Knows nothing of what any spec
means.
"""

import copy
import difflib
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, PrivateAttr, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from maas_ray.errors import DataError, MaasError, NotFoundError, Problem, SpecError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A name that is safe in a path, a URL and a registry: letters, digits, `.`, `_` and `-`."""


@dataclass(frozen=True)
class _Origin:
    """Where a spec was read. Equal to any other: what a spec says does not depend on it."""

    source: str = field(default="", compare=False)
    lines: dict[tuple[Any, ...], int] = field(default_factory=dict, compare=False)


class Spec(BaseModel):
    """Base of all specs. Subclasses document every field in one line: meaning, unit, sentinel."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)

    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a spec from a YAML file.

        Args:
            path: the file. Relative paths inside the spec are taken from the working directory.
            overrides: `a.b=c` assignments laid over the file; `c` is read as YAML.

        Raises:
            SpecError: names the file and every problem in it.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise SpecError(str(path), [f"cannot be read: {error.strerror}. Check the path."]) from error
        except UnicodeDecodeError as error:
            raise SpecError(str(path), [f"is not UTF-8 text (byte {error.start}); save it as UTF-8."]) from error
        return cls.from_text(text, source=str(path), overrides=overrides)

    @classmethod
    def from_text(cls, text: str, *, source: str, overrides: Iterable[str] = ()) -> Self:
        """Parse YAML text; `source` stands in error messages where a file's name would."""
        overrides = tuple(overrides)
        try:
            node = yaml.compose(text, Loader=_Loader)
            data = yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader that also refuses duplicate keys
            lines = _lines(node)
        except yaml.YAMLError as error:
            raise SpecError(source, [_yaml_problem(error)]) from error
        except RecursionError:
            raise SpecError(source, ["is nested too deeply, or an alias holds itself; write the values out."]) from None
        data = {} if data is None else data
        if not isinstance(data, dict):
            raise SpecError(source, [f"holds {_seen(data)} at the top; write `field: value` lines."])
        data, problems = _override(data, overrides)
        if problems:
            raise SpecError(source, problems)
        for override in overrides:  # what an override brought stands on no line
            keys = override.partition("=")[0].strip().split(".")
            laid_over = tuple(int(key) if key.isdigit() else key for key in keys)
            lines = {path: line for path, line in lines.items() if path[: len(laid_over)] != laid_over}
            lines[laid_over] = 0
        return cls._parse(data, source, lines)

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, source: str | None = None) -> Self:
        """Build a spec from plain values, with the same errors as from a file."""
        return cls._parse(dict(data), source or cls.__name__, {})

    @classmethod
    def _parse(cls, data: dict[str, Any], source: str, lines: dict[tuple[Any, ...], int]) -> Self:
        try:
            spec = cls.model_validate(data)
        except ValidationError:
            raise SpecError(source, _problems(cls, data, lines)) from None
        spec._origin = _Origin(source, lines)
        return spec

    def document(self) -> dict[str, Any]:
        """The spec as plain JSON values, defaults filled in."""
        return self.model_dump(mode="json")

    def where(self, field: str) -> str:
        """Where a field such as `sources[0].path` stands: `prepare.yaml, line 4: sources[0].path`."""
        line = self._line(field)
        return self._source + (f", line {line}: " if line else ": ") + field

    def refuse(self, field: str, *problems: str, code: str | None = None) -> SpecError:
        """The error for a field that can only be found wrong after parsing, as parsing would have reported it.

        Args:
            field: the field, such as `sources[0].path`.
            problems: what is wrong with it, a line each.
            code: the code of problems that are plain strings.
        """
        line = self._line(field)
        problems = tuple(Problem(problem, getattr(problem, "code", code)) for problem in problems)
        return SpecError(self._source, [_placed(problem, field, line) for problem in problems])

    @contextmanager
    def at(self, field: str) -> Iterator[None]:
        """Errors about what a field names also say where the field stands; their type stays."""
        try:
            yield
        except SpecError as error:
            raise self.refuse(field, *error.problems) from error
        except (NotFoundError, DataError) as error:
            raise type(error)(f"{self.where(field)}: {error}", code=error.code) from error

    @property
    def _source(self) -> str:
        return self._origin.source or type(self).__name__

    def _line(self, field: str) -> int | None:
        path = tuple(int(key) if key.isdigit() else key for key in re.findall(r"[^.\[\]]+", field))
        return _line_of(path, self._origin.lines)


def digest_of(document: Any) -> str:
    """Sha256, in hex, of a JSON document in canonical form."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(canonical.encode()).hexdigest()


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, refusing duplicate keys: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice; keep one", key_node.start_mark
                )
            seen.add(key if isinstance(key, (str, int)) else repr(key))
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 reads `1e-3` as text; everybody means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}not valid YAML: {getattr(error, 'problem', None) or error}"


def _lines(node: yaml.Node | None, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], int]:
    """Line numbers, from 1, of every key path in a YAML document."""
    lines: dict[tuple[Any, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            lines |= _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            lines[(*path, place)] = value.start_mark.line + 1
            lines |= _lines(value, (*path, place))
    return lines


def _placed(problem: str, field: str, line: int | None) -> Problem:
    """A problem that names its field and its line."""
    named = problem if problem.startswith((f"{field}:", f"{field}.", f"{field}[")) else f"{field}: {problem}"
    return Problem((f"line {line}: " if line else "") + named, getattr(problem, "code", None))


def _code(detail: ErrorDetails) -> str:
    """The code that a validator gave its error, or pydantic's own, such as `missing` or `extra_forbidden`."""
    raised = detail.get("ctx", {}).get("error")
    return (raised.code if isinstance(raised, MaasError) else None) or detail["type"]


def _problems(cls: type[BaseModel], data: dict[str, Any], lines: dict[tuple[Any, ...], int]) -> list[Problem]:
    """All problems of a document, a line each.

    Rules across fields run only once each field is right. So what is wrong is taken out, its default stands
    in, and the rest is checked again.
    """
    problems: dict[Problem, None] = {}
    doubted: set[str] = set()
    data = copy.deepcopy(data)
    while details := _errors(cls, data):
        wrong: dict[tuple[Any, ...], None] = {}
        meant: set[str] = set()
        for detail in details:
            path, problem = _plain(detail, data), _problem(cls, detail, data)
            wrong[_key(path)] = None
            meant.update(_meant(cls, detail))
            # What is missing now, or disagrees with a default that stands in, is not the user's mistake.
            if not doubted or (detail["type"] != "missing" and doubted.isdisjoint(re.findall(r"\w+", problem))):
                line = _line_of(path, lines)
                problems[Problem((f"line {line}: " if line else "") + problem, _code(detail))] = None
        taken = {name for path in wrong if (name := _take_out(data, path))}
        if not taken:
            break
        doubted |= taken | meant
    return list(problems)


def _errors(cls: type[BaseModel], data: dict[str, Any]) -> list[ErrorDetails]:
    try:
        cls.model_validate(data)
    except ValidationError as error:
        return _telling(error.errors(include_url=False))
    return []


def _key(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The path of the field that a value belongs to: an item is not taken out of its list."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    return path


def _take_out(document: Any, path: tuple[Any, ...]) -> str | None:
    """Remove a field, or the field around it where it is not there; gives the name of what was removed."""
    if not path:
        return None
    holder = document
    try:
        for part in path[:-1]:
            holder = holder[part]
        del holder[path[-1]]
    except KeyError:
        return _take_out(document, _key(path[:-1]))
    except (IndexError, TypeError):
        return None
    return str(path[-1])


def _plain(detail: ErrorDetails, data: Any) -> tuple[Any, ...]:
    """Where in the document an error lies: pydantic's location without the union tags it puts between keys."""
    path: list[Any] = []
    missing = detail["type"] == "missing"
    for place, part in enumerate(detail["loc"]):
        if isinstance(data, dict) and (part in data or (missing and place == len(detail["loc"]) - 1)):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part] if part < len(data) else None
        else:
            continue
        path.append(part)
    return tuple(path)


def _line_of(path: tuple[Any, ...], lines: dict[tuple[Any, ...], int]) -> int | None:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _problem(cls: type[BaseModel], detail: ErrorDetails, data: dict[str, Any]) -> str:
    """One line: field, what is wrong, value seen, what to do."""
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
        return f"{field}: holds {_seen(detail['input'])}; write it as `field: value` lines. Fields: {', '.join(known)}."
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("value_error", "assertion_error"):
        return f"{field}: {message}" if field else message
    message = message[0].lower() + message[1:]
    message = message.replace("string should match pattern", "must match the pattern")
    return f"{field}: {message} (found {_seen(detail['input'])})"


def _meant(cls: type[BaseModel], detail: ErrorDetails) -> list[str]:
    """The field that an unknown one was probably meant to be."""
    if detail["type"] != "extra_forbidden":
        return []
    *outer, name = detail["loc"]
    return difflib.get_close_matches(str(name), _fields_at(cls, tuple(outer)), n=1)


def _tag_problem(cls: type[BaseModel], detail: ErrorDetails, field: str) -> str:
    """A union's `type:` that is unknown, or not there."""
    tags = [str(_tag(model)) for model in _models_at(cls, tuple(detail["loc"]))]
    context = detail.get("ctx", {})
    tag_field = str(context.get("discriminator", "type")).strip("'")
    if "tag" not in context:
        return f"{field}.{tag_field}: is missing; choose one of {', '.join(tags)}."
    near = difflib.get_close_matches(str(context["tag"]), tags, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{field}.{tag_field}: {context['tag']!r} is not known; choose one of {', '.join(tags)}.{hint}"


def _telling(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without the branches of a union that were not meant: a mapping is not a misspelt string."""
    return [
        detail
        for detail in details
        if not (
            detail["type"].endswith("_type")
            and isinstance(detail["input"], dict)
            and any(
                other is not detail and other["loc"][: len(detail["loc"]) - 1] == detail["loc"][:-1]
                for other in details
            )
        )
    ]


def _dotted(loc: tuple[Any, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _seen(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields_at(cls: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The names of the fields that are allowed at a location of a spec."""
    return sorted({name for model in _models_at(cls, loc) for name in model.model_fields})


def _models_at(cls: type[BaseModel], loc: tuple[Any, ...]) -> list[type[BaseModel]]:
    """The specs that may stand at a location of a spec."""
    candidates: list[type[BaseModel]] = [cls]
    for part in loc:
        if isinstance(part, int):
            continue
        inside = [
            model
            for candidate in candidates
            if part in candidate.model_fields
            for model in _models_in(candidate.model_fields[part].annotation)
        ]
        tagged = [model for model in candidates if _tag(model) == part]
        candidates = inside or tagged or candidates
    return candidates


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]


def _tag(model: type[BaseModel]) -> Any:
    for name in ("type", "format", "step"):
        if name in model.model_fields:
            arguments = typing.get_args(model.model_fields[name].annotation)
            if arguments:
                return arguments[0]
    return None


def _override(data: dict[str, Any], overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Lay `a.b=c` assignments over a document; list indices are numbers: `sources.0.path=x`."""
    data = copy.deepcopy(data)
    problems = []
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            problems.append(f"--set {override}: write it as `field=value` or `field.inner=value`.")
            continue
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader
        except yaml.YAMLError as error:
            problems.append(f"--set {override}: the value is {_yaml_problem(error)}")
            continue
        problem = _assign(data, keys, value)
        if problem:
            problems.append(f"--set {override}: {problem}")
    return data, problems


def _assign(data: Any, keys: list[str], value: Any) -> str | None:
    for place, key in enumerate(keys):
        last = place == len(keys) - 1
        if isinstance(data, list):
            if not key.isdigit() or int(key) >= len(data):
                return f"`{'.'.join(keys[:place])}` is a list of {len(data)}; {key!r} is not a place in it."
            index: Any = int(key)
        elif isinstance(data, dict):
            index = key
        else:
            return f"`{'.'.join(keys[:place])}` holds {_seen(data)}, which has no field {key!r}."
        if last:
            data[index] = value
        else:
            data = data.setdefault(index, {}) if isinstance(data, dict) else data[index]
    return None
