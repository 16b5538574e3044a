"""The layouts in which files hold chats: OpenAI's messages, ShareGPT's conversations, Alpaca's instructions.

Each layout gives a row's chat as messages and tools; `messages` has their one form.
"""

import json
from collections.abc import Collection
from typing import Any, NamedTuple

from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import OPTIONAL_PREFIX, Row
from maas_ray.tasks.text.messages import Message, canonical_chat, canonical_tools

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}


class ChatColumns(NamedTuple):
    """The columns of a layout: those that a source must have, and those that it may have."""

    needed: tuple[str, ...]
    optional: tuple[str, ...]


CHAT_LAYOUTS = {
    "messages": ChatColumns(("messages",), ("tools",)),
    "conversations": ChatColumns(("conversations",), ("system", "tools")),
    "instruction": ChatColumns(("instruction", "output"), ("input", "system", "history")),
}
"""Layouts by their first column."""


def layout_advice(columns: Collection[str]) -> str:
    """The field that reads a source with these columns. Empty: they are not columns of chats."""
    for name, layout in CHAT_LAYOUTS.items():
        if {*layout.needed} <= {*columns}:
            needed, optional = ", ".join(layout.needed), ", ".join(layout.optional)
            return f"Set `column: {name}` in the task: it reads {needed}, and {optional} if a source has them."
    return ""


def parse_chat(row: Row, layout: str) -> Row | None:
    """A row's chat as canonical JSON, `messages` and, if there are any, `tools`; None if it is empty.

    Raises:
        InvalidError: it is not a chat in this layout; names the place.
    """
    try:
        return _parsed(row, layout)
    except RecursionError as error:
        raise InvalidError("wrong_type", "the chat holds objects that are nested too deeply") from error


def _parsed(row: Row, layout: str) -> Row | None:
    read = {"messages": _messages, "conversations": _conversations, "instruction": _instruction}[layout]
    messages = read(row)
    if not messages:
        return None
    chat = {"messages": json.dumps(canonical_chat(messages), ensure_ascii=False)}
    tools = canonical_tools(_optional(row, "tools"))
    return chat | ({"tools": json.dumps(tools, ensure_ascii=False)} if tools else {})


def chat_of(row: Row) -> tuple[list[Message], list[dict[str, Any]]]:
    """The messages and the tools of a parsed row."""
    return json.loads(row["messages"]), json.loads(row.get("tools", "[]"))


def contents_of(row: Row) -> str:
    """A chat's texts without their roles, to fit a tokenizer on."""
    messages, tools = chat_of(row)
    parts = []
    for message in messages:
        parts += [message["content"], *(json.dumps(call["function"]) for call in message.get("tool_calls", ()))]
    return "\n".join([*parts, *map(json.dumps, tools)])


def _optional(row: Row, name: str) -> Any:
    # A user may also name the column, and then it is not optional.
    return row.get(OPTIONAL_PREFIX + name, row.get(name))


def _messages(row: Row) -> Any:
    """The messages, with the names that templates know for roles such as `human` or `System`; they skip others."""
    messages = row["messages"]
    if not isinstance(messages, list):
        return messages
    return [
        message | {"role": known}
        if isinstance(message, dict) and (known := _role_of(message.get("role"))) is not None
        else message
        for message in messages
    ]


def _role_of(name: Any) -> str | None:
    return _ROLES.get(name.lower()) if isinstance(name, str) and name != "function_call" else None


def _conversations(row: Row) -> Any:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        return [] if not turns else _wrong("conversations", "a list", turns)
    messages = _system(row)
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if not isinstance(turn, dict):
            _wrong(where, "an object", turn)
        speaker, text = (turn.get(name, turn.get(other)) for name, other in (("from", "role"), ("value", "content")))
        if speaker not in _ROLES:
            raise InvalidError("unknown_role", f"{where}.from is {speaker!r}; known are {', '.join(map(repr, _ROLES))}")
        if speaker == "function_call":
            messages.append({"role": "assistant", "tool_calls": _calls(text, f"{where}.value")})
        else:
            calls = {"tool_calls": turn["tool_calls"]} if turn.get("tool_calls") else {}
            messages.append({"role": _ROLES[speaker], "content": text, **calls})
    return messages


def _calls(text: Any, where: str) -> list[Any]:
    try:
        calls = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise InvalidError("wrong_type", f"{where} is text that is not JSON") from error
    return calls if isinstance(calls, list) else [calls]


def _instruction(row: Row) -> list[Message]:
    instruction, context, output = (_text(row, name) for name in ("instruction", "input", "output"))
    if not output.strip() or not (instruction + context).strip():
        return []
    messages = _system(row)
    for index, pair in enumerate(_optional(row, "history") or ()):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            _wrong(f"history[{index}]", "a question and its answer", pair)
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = "\n".join(part for part in (instruction, context) if part)
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": output}]


def _system(row: Row) -> list[Message]:
    system = _text(row, "system")
    return [{"role": "system", "content": system}] if system else []


def _text(row: Row, name: str) -> str:
    value = row[name] if name in row else _optional(row, name)
    if value is None:
        return ""
    if not isinstance(value, str):
        _wrong(name, "a string", value)
    return str(value)


def _wrong(where: str, expected: str, value: Any) -> None:
    raise InvalidError("wrong_type", f"{where} is a {type(value).__name__}, not {expected}")
