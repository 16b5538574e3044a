"""The models that a spec's fields hold, and the field that tells the models of a union apart."""

import typing
from typing import Annotated, Any

from pydantic import BaseModel, WithJsonSchema

TAGS = ("type", "format", "step")
"""The fields by which the models of a union are told apart."""


def user_type(tag: str) -> Any:
    """The JSON schema of a mapping whose type is the user's own class, as in `type: my_package.tasks:Sentiment`."""
    properties = {tag: {"type": "string", "pattern": "^[^:]+:[^:]+$"}}
    return Annotated[dict[str, Any], WithJsonSchema({"type": "object", "properties": properties, "required": [tag]})]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation, such as those of a union or a list."""
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in models_in(argument)]


def tag_of(model: type[BaseModel]) -> Any:
    """The value of the field that tells a model apart in a union, or None."""
    for name in TAGS:
        if name in model.model_fields:
            arguments = typing.get_args(model.model_fields[name].annotation)
            if arguments:
                return arguments[0]
    return None
