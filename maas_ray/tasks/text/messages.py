"""Chats in one form, whichever door they come through: the rows of a source, or the body of a request.

    role        `developer` is `system`, the name that chat templates know
    content     text; parts of text are joined; none beside tool calls is empty
    tool_calls  `{id, type, function: {name, arguments}}`, with the arguments as an object
    tools       `{type, function: {name, description, parameters}}`

Fields without a value are dropped. Arrow and Parquet fill in such fields, also within objects.
"""

import json
from collections.abc import Mapping
from typing import Any

from maas_ray.errors import InvalidError

Message = dict[str, Any]
_CHANGING = ("function_call", "audio", "refusal")
"""Fields of OpenAI's messages that stand for something else than content and are not supported."""


_SCHEMAS = ("input_schema", "inputSchema")
"""The names that Anthropic and MCP have for the `parameters` of a tool."""


def canonical_chat(messages: Any) -> list[Message]:
    """A chat in canonical form.

    Raises:
        InvalidError: it is not a list of messages with a role and a content; names the place.
    """
    if not isinstance(messages, list):
        raise InvalidError("wrong_type", f"messages is a {type(messages).__name__}, not a list")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def canonical_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools in canonical form, from a list or its JSON text.

    Raises:
        InvalidError: one of them is not a function with a name; names the place.
    """
    if isinstance(tools, str):
        tools = _json(tools, "tools") if tools.strip() else None
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise InvalidError("wrong_type", f"tools is a {type(tools).__name__}, not a list")
    return [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def _message(message: Any, where: str) -> Message:
    fields = _filled(message, where)
    calls = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(fields.pop("tool_calls", ()))]
    for name in _CHANGING:
        if fields.get(name):
            raise InvalidError("unsupported_field", f"{where}.{name} is not supported; write calls as `tool_calls`")
    fields = {name: value for name, value in fields.items() if name != "annotations" or value}
    if "from" in fields and "role" not in fields:
        raise InvalidError("wrong_layout", f"{where} is a turn of ShareGPT; set `column: conversations` in the task")
    if not isinstance(fields.get("role"), str):
        raise InvalidError("wrong_type", f"{where}.role must be a string")
    fields["role"] = "system" if fields["role"] == "developer" else fields["role"]
    fields["content"] = _content(fields.get("content", "" if calls else None), f"{where}.content")
    return dict(sorted((fields | ({"tool_calls": calls} if calls else {})).items()))


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidError("wrong_type", f"{where} must be a string or a list of parts")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise InvalidError("unsupported_content", f"{where}[{index}] is not text but {kind}")
        texts.append(text)
    return "".join(texts)


def _call(call: Any, where: str) -> dict[str, Any]:
    fields = _filled(call, where)
    function = _filled(fields.get("function", call), f"{where}.function")
    if not isinstance(function.get("name"), str):
        raise InvalidError("wrong_type", f"{where}.function.name must be a string")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{where}.function.arguments") if arguments.strip() else {}
    else:
        arguments = without_missing(arguments)
    if not isinstance(arguments, dict):
        raise InvalidError("wrong_type", f"{where}.function.arguments must be an object, or its JSON as text")
    named = {"id": fields["id"]} if "id" in fields else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tool(tool: Any, where: str) -> dict[str, Any]:
    fields = _filled(tool, where)
    function = without_missing(_filled(fields.get("function", tool), f"{where}.function"))
    if not isinstance(function.get("name"), str):
        raise InvalidError("wrong_type", f"{where}.function.name must be a string")
    for name in _SCHEMAS:
        if name in function:
            function.setdefault("parameters", function[name])
    order = ("name", "description", "parameters")
    shown = {name: function[name] for name in order if name in function}
    return {"type": "function", "function": shown}


def without_missing(value: Any) -> Any:
    """An object without the fields that have no value, at any depth."""
    if isinstance(value, Mapping):
        return {name: without_missing(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_missing(inner) for inner in value]
    return value


def _filled(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidError("wrong_type", f"{where} is a {type(value).__name__}, not an object")
    return {name: inner for name, inner in value.items() if inner is not None}


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidError("wrong_type", f"{where} is text that is not JSON") from error
