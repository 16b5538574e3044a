"""A spec's document: YAML without duplicate keys, its line numbers, and `--set` overrides."""

import copy
import re
from collections.abc import Iterable
from typing import Any

import yaml

from maas_ray.errors import Problem, SpecError

Lines = dict[tuple[Any, ...], int]
"""Line numbers, from 1, by the path of keys and list indices. 0: the value is not in the file."""


def read(text: str, source: str) -> tuple[Any, Lines]:
    """The values of a YAML text, `{}` if it is empty, and the line of each key.

    Raises:
        SpecError: the text is not YAML.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader that also rejects duplicate keys
        return {} if data is None else data, _line_numbers(node)
    except yaml.YAMLError as error:
        raise SpecError(source, [_yaml_problem(error)]) from error
    except RecursionError:
        problem = "is nested too deeply, or an alias contains itself; write the values out."
        raise SpecError(source, [problem], code="nested_too_deeply") from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but rejecting duplicate keys, of which the last would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}; keep one", key_node.start_mark
                )
            seen.add(key if isinstance(key, (str, int)) else repr(key))
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 parses `1e-3` as text, but users mean the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _yaml_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    text = getattr(error, "problem", None) or str(error)
    code = "duplicate_key" if text.startswith("duplicate key") else "invalid_yaml"
    return Problem(f"{where}not valid YAML: {text}", code)


def _line_numbers(node: yaml.Node | None, path: tuple[Any, ...] = ()) -> Lines:
    lines: Lines = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            lines |= _line_numbers(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            lines |= _line_numbers(value, (*path, index))
    return lines


def line_of(path: tuple[Any, ...], lines: Lines) -> int | None:
    """The line of a field, or of the closest field around it."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def lines_after(lines: Lines, overrides: Iterable[str]) -> Lines:
    """Line numbers after overrides: a value that an override set has no line."""
    for assignment in overrides:
        keys = assignment.partition("=")[0].strip().split(".")
        path = tuple(int(key) if key.isdigit() else key for key in keys)
        lines = {other: line for other, line in lines.items() if other[: len(path)] != path} | {path: 0}
    return lines


def override(data: dict[str, Any], overrides: Iterable[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Apply `a.b=c` assignments to a document. List indices are numbers: `sources.0.path=x`."""
    data = copy.deepcopy(data)
    problems = []
    for assignment in overrides:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            problem = f"--set {assignment}: write it as `field=value` or `field.inner=value`."
            problems.append(Problem(problem, "invalid_override"))
            continue
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader
        except yaml.YAMLError as error:
            problems.append(Problem(f"--set {assignment}: the value is {_yaml_problem(error)}", "invalid_override"))
            continue
        if wrong := _assign(data, keys, value):
            problems.append(Problem(f"--set {assignment}: {wrong}", "invalid_override"))
    return data, problems


def _assign(data: Any, keys: list[str], value: Any) -> str | None:
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        outer = ".".join(keys[:depth])
        if isinstance(data, list):
            if not key.isdigit() or int(key) >= len(data):
                return f"`{outer}` is a list of length {len(data)}; {key!r} is not an index of it."
            index: Any = int(key)
        elif isinstance(data, dict):
            index = key
        else:
            return f"`{outer}` holds {shown(data)}, which has no field {key!r}."
        if last:
            data[index] = value
        else:
            data = data.setdefault(index, {}) if isinstance(data, dict) else data[index]
    return None


def shown(value: Any) -> str:
    """A value as an error shows it, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
