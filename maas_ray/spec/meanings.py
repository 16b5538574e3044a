"""The meaning of each field of a spec: the docstring below it, read from the source when it is asked for.

Pydantic's `use_attribute_docstrings` reads them when a class is made. That was half of the time in which every process
of the platform imports its specs, and only a template, a schema or a page of the documentation shows them.
"""

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema


def meaning(model: type[BaseModel], name: str) -> str:
    """The meaning of a field. Empty: it has none."""
    described = model.model_fields[name].description
    if described is not None:
        return described
    home = next(cls for cls in model.__mro__ if name in inspect.get_annotations(cls))
    return _docstrings(home).get(name, "")


class WithMeanings(GenerateJsonSchema):
    """A JSON schema in which each field of a spec is described by its meaning."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        document = super().model_schema(schema)
        model: type[BaseModel] = schema["cls"]
        for name, info in model.model_fields.items():
            if text := meaning(model, name):
                document["properties"][info.alias or name].setdefault("description", text)
        return document


@cache
def _docstrings(cls: type) -> dict[str, str]:
    """The docstrings of attributes that are annotated in the body of a class, by name."""
    nodes, body = _parsed(cls.__module__), list[ast.stmt]()
    for name in cls.__qualname__.split("."):
        if name != "<locals>":
            named = [node for node in nodes if getattr(node, "name", None) == name]
            body = getattr(named[0], "body", []) if named else []
            nodes = [inner for node in body for inner in ast.walk(node)]
    docstrings = {}
    for pair in pairwise(body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docstrings[name] = inspect.cleandoc(text)
    return docstrings


@cache
def _parsed(module: str) -> list[ast.AST]:
    """Every node of a module, from the outermost inwards."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):  # typed at a prompt
        return []
    return [*ast.walk(ast.parse(source))]
