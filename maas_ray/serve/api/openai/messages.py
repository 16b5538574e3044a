"""OpenAI's API for chats: messages, and the tools that the model may call."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from maas_ray.bodies import Body
from maas_ray.serve.api.validation import at_most

# A body with hundreds of thousands of small objects would take seconds to validate.
MAX_MESSAGES = 2048
"""Most messages of a chat."""
MAX_PARTS = 1024
"""Most parts of a message's content."""
MAX_TOOLS = 128
"""Most tools of a request, and most calls of a message."""

# Fields of messages, parts, tools and calls that say nothing to a model.
_NOTES = {"id", "index", "annotations", "cache_control", "parsed", "parsed_arguments"}


class _Item(Body):
    """An object that clients fill with more than OpenAI's fields: with empty ones, and with notes to other servers."""

    @model_validator(mode="before")
    @classmethod
    def _without_notes(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if name in cls.model_fields or not (value is None or name in _NOTES)
        }


class ContentPart(_Item):
    type: Literal["text"]
    text: str


class _Function(_Item):
    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _object(cls, value: str) -> str:
        try:
            fine = not value.strip() or isinstance(json.loads(value), dict)
        except (ValueError, RecursionError):
            fine = False
        if not fine:
            raise PydanticCustomError("invalid_value", "the arguments of a call must be a JSON object, as text")
        return value


class ToolCall(_Item):
    id: str
    type: Literal["function"]
    function: _Function


class Message(_Item):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], at_most(MAX_PARTS)]
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], at_most(MAX_TOOLS), Field(min_length=1)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_role(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        role = data.get("role")
        for name, owner in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
            if data.get(name) is not None and role != owner:
                raise PydanticCustomError(
                    "invalid_value",
                    "'{name}' is only allowed in a message of role '{owner}'.",
                    {"name": name, "owner": owner},
                )
        if role == "tool" and data.get("tool_call_id") is None:
            raise PydanticCustomError("missing", "Missing required parameter: '{name}'.", {"name": "tool_call_id"})
        if role == "assistant" and data.get("content") is None:
            data = data | {"content": ""}
        if "reasoning" in data:  # the same field, as vLLM calls it
            data = {"reasoning_content": data["reasoning"]} | {k: v for k, v in data.items() if k != "reasoning"}
        return data


class ToolFunction(_Item):
    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """true: if the call is required, a schema that cannot be enforced is refused."""


class Tool(_Item):
    type: Literal["function"]
    function: ToolFunction


class _Named(Body):
    name: str


class NamedTool(Body):
    """A function that the answer must call."""

    type: Literal["function"]
    function: _Named


class _Allowed(Body):
    mode: Literal["auto", "required"]
    """required: the answer must call one of them."""
    tools: Annotated[list[NamedTool], at_most(MAX_TOOLS), Field(min_length=1)]


class AllowedTools(Body):
    """The functions that the answer may call, of all that the request has."""

    type: Literal["allowed_tools"]
    allowed_tools: _Allowed
