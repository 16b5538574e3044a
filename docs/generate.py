"""Pages of the site that are made from code: the reference of specs, commands and the HTTP API.

A hook of MkDocs (`mkdocs.yml`): nothing is written to disk and nothing needs a network. The page of a repository's
file, such as README.md, is that file with its links turned to the site's pages; a link to a file that does not
exist stops the build.
"""

import inspect
import json
import posixpath
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

import annotated_types
import typer.main
from pydantic import BaseModel, StringConstraints
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "findings/README.md": "findings.md",
}
"""Files outside docs/ that are pages of the site too."""
_LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


_FIELDS = ("field", "type", "default", "limits", "meaning")
_FIRST_ERROR = 400
_MAX_LINKS = 4
_NOWHERE = "not-a-page"
_SIMPLE = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Any: "anything", type(None): "null"}


# --- the hook --------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that leave docs/ to pages of the site."""
    source = next((name for name, uri in PAGES.items() if uri == page.file.src_uri), f"docs/{page.file.src_uri}")
    return relinked(markdown, source, page.file.src_uri)


def pages() -> dict[str, str]:
    """Every generated page by its path in the site."""
    copied = {uri: (ROOT / name).read_text(encoding="utf-8") for name, uri in PAGES.items() if (ROOT / name).exists()}
    return copied | spec_pages() | {"reference/cli.md": cli_page(), "reference/http.md": http_page()}


def relinked(markdown: str, source: str, uri: str) -> str:
    """Markdown of the repository's file `source` with its links as they are right on the site's page `uri`.

    A link to a file that is not a page becomes its text alone.

    Raises:
        FileNotFoundError: the repository has no such file.
    """

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        page = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page is None:
            if not (ROOT / path).exists():
                raise FileNotFoundError(f"{source}: link to {match[1]}, but there is no {path}")
            return _NOWHERE
        return posixpath.relpath(page, posixpath.dirname(uri) or ".") + (match[2] or "")

    linked = _LINK.sub(target, markdown)
    return re.sub(rf"\[([^\]]*)\]\({_NOWHERE}\)", r"\1", linked)


# --- specs -----------------------------------------------------------------------------------------


def spec_pages() -> dict[str, str]:
    """One page for each spec that a user writes, and for each family that a spec chooses from."""
    from maas_ray import DeploySpec, EvaluateSpec, PredictSpec, PrepareSpec, TrainSpec
    from maas_ray.data.cleaning import STEPS
    from maas_ray.data.sources import FORMATS
    from maas_ray.serve.spec import SharedArgs
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
        "deploy": ("`maas deploy`: the spec of an endpoint", [DeploySpec, SharedArgs]),
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
        lines += [f"## {_name(model)} {{ #{_anchor(model)} }}", "", *_paragraphs(inspect.getdoc(model) or ""), ""]
        lines += _table(
            _FIELDS,
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
        " ".join((info.description or "").split()).replace("None:", "`null`:"),
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
        return " or ".join(f"`{_yaml(value)}`" for value in arguments)
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
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """A value on one line, as YAML and JSON both read it; plain words without quotes."""
    if isinstance(value, str) and re.fullmatch(r"[\w./@:-]+( [\w./@:-]+)*", value):
        return value
    return json.dumps(value, ensure_ascii=False, default=lambda other: other.model_dump(mode="json"))


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


# --- the command line ------------------------------------------------------------------------------


def cli_page() -> str:
    """Every command of `maas`, as its own help describes it."""
    from maas_ray.cli import app

    return "# The command line\n\n" + "\n".join(_command(typer.main.get_command(app), "maas"))


def _command(command: Any, name: str) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    yield f"## `{name}`\n"
    yield f"```\n{name} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    for block in re.split(r"\n\s*\n", inspect.cleandoc((command.help or "").replace("\b", ""))):
        first, _, rest = block.partition("\n")
        yield f"{first}\n\n```\n{inspect.cleandoc(rest)}\n```\n" if first.endswith(":") and rest else f"{block}\n"
    yield from _table(
        ("argument or option", "meaning"), filter(None, (_parameter(one, context) for one in command.params))
    )
    for child, below in sorted(getattr(command, "commands", {}).items()):
        if not below.hidden:
            yield from _command(below, f"{name} {child}")


def _parameter(parameter: Any, context: Any) -> tuple[str, str] | None:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`", " ".join((parameter.help or "").split())
    record = parameter.get_help_record(context)
    return record and (f"`{record[0]}`", " ".join(record[1].split()))


# --- the HTTP API ----------------------------------------------------------------------------------


def http_page() -> str:
    """Every path of the OpenAPI document and every schema in it."""
    from maas_ray.serve.api.openapi import document

    api = document([])
    lines = [
        "# The HTTP API",
        "",
        "A running gateway describes itself at `/openapi.json`, with the models it serves.",
        "",
    ]
    lines += [
        "Every path may answer these errors, with an [Error](#error) or an [InferenceError](#inferenceerror):",
        "",
    ]
    lines += _table(("status", "meaning"), sorted(_errors(api).items()))
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            lines += [f"## `{method.upper()} {path}`", "", f"{operation['summary']}.", ""]
            lines += _table(
                ("parameter", "in", "type", "meaning"),
                (
                    (f"`{one['name']}`", one["in"], _schema_type(one.get("schema", {})), one.get("description", ""))
                    for one in operation.get("parameters", ())
                ),
            )
            for media, body in operation.get("requestBody", {}).get("content", {}).items():
                lines += [f"Body, `{media}`: {_schema_type(body.get('schema', {}))}", ""]
                lines += _properties(body.get("schema", {}))
            for status, answer in operation["responses"].items():
                if int(status) < _FIRST_ERROR:
                    bodies = _bodies(answer.get("content", {})) or answer.get("description", "")
                    lines += [f"Answer, {status}: {bodies}", ""]
    lines += ["## Schemas", ""]
    for name, schema in sorted(api["components"]["schemas"].items()):
        lines += [f"### {name} {{ #{name.lower()} }}", "", *_paragraphs(schema.get("description", "")), ""]
        lines += _properties(schema)
        if "properties" not in schema:
            lines += [_schema_type(schema), ""]
    return "\n".join(lines) + "\n"


def _errors(api: Mapping[str, Any]) -> dict[str, str]:
    """The meaning of every status that is an error."""
    answers = (
        answer
        for methods in api["paths"].values()
        for operation in methods.values()
        for answer in operation["responses"].items()
    )
    return {str(status): answer["description"] for status, answer in answers if int(status) >= _FIRST_ERROR}


def _properties(schema: Mapping[str, Any]) -> list[str]:
    """The fields of an object's schema as a table."""
    required = set(schema.get("required", ()))
    return _table(
        _FIELDS,
        (
            (
                f"`{field}`",
                _schema_type(found),
                "required" if field in required else f"`{_yaml(found['default'])}`" if "default" in found else "",
                ", ".join(_schema_limits(found)),
                " ".join(found.get("description", "").split()),
            )
            for field, found in schema.get("properties", {}).items()
        ),
    )


def _bodies(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{_schema_type(body.get('schema', {}))} as `{media}`" for media, body in content.items())


def _schema_type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_schema_type(one) for one in schema[several]))
    if "allOf" in schema:
        return _schema_type(next((one for one in schema["allOf"] if "$ref" in one), schema["allOf"][0]))
    if "const" in schema or "enum" in schema:
        values = schema.get("enum") or [schema["const"]]
        return " or ".join(f"`{_yaml(value)}`" for value in values)
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_schema_type(schema.get('items', {}))}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


_SCHEMA_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "minItems": "items ≥ {}",
    "maxItems": "items ≤ {}",
}


def _schema_limits(schema: Mapping[str, Any]) -> Iterator[str]:
    for branch in (schema, *schema.get("anyOf", ())):
        yield from (words.format(branch[key]) for key, words in _SCHEMA_LIMITS.items() if key in branch)


# --- Markdown --------------------------------------------------------------------------------------


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table, or nothing without rows."""
    body = ["| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body, ""] if body else []


def _paragraphs(text: str) -> list[str]:
    """A docstring as Markdown, without its sections of arguments and errors."""
    return re.split(r"\n(?=(?:Args|Raises|Returns):\n)", text)[0].splitlines()
