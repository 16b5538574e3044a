"""The formats in which models write tool calls, as their chat templates render them.

Two ways to write arguments: as a JSON object, and as parameters between tags (`tagged_arguments`). Knows nothing of
requests or answers; `tool_calls` has the parser.
"""

from dataclasses import dataclass
from typing import Any

import regex

from maas_ray.serve.text.tagged_arguments import Tags

_PAIR = r'"(?!name"|arguments"|parameters")[^"\\]{0,256}"\s*:\s*(?:"[^"\\]{0,256}"|[\w.+-]{1,256})'
"""A member of a call beside its name and its arguments, such as `"type": "function"`."""
_NAMED = rf'\{{\s*(?:{_PAIR}\s*,\s*)*"name"\s*:\s*"(?P<name>[^"\\]{{1,256}})"\s*,\s*(?:{_PAIR}\s*,\s*)*'


@dataclass(frozen=True)
class Shape:
    """A way to write one call.

    Args:
        head: from the beginning of the call to its arguments. The group `name` is the function's name.
        tail: from the end of the arguments to the end of the call. The group `more` announces another call.
        short_tail: the tail of a model that omits the closing mark.
        whole: the arguments are the complete call, as one JSON object.
        tags: the tags around parameters. None: the arguments are a JSON object.
    """

    head: Any
    tail: Any
    short_tail: Any
    whole: bool = False
    tags: Tags | None = None


@dataclass(frozen=True)
class CallFormat:
    """A format of tool calls.

    Args:
        name: what users call it.
        marks: the texts that begin a call.
        shapes: the ways to write a call, in the order in which they are tried.
        tokens: marks within a call. Like `marks`, they may be special tokens, which an answer's text leaves out.
        bare: a character that begins a call without a mark, if it also begins the answer.
    """

    name: str
    marks: tuple[str, ...]
    shapes: tuple[Shape, ...]
    tokens: tuple[str, ...] = ()
    bare: str = ""


def _object(opening: str, closing: str) -> tuple[Shape, Shape]:
    """A call as `{"name": …, "arguments": {…}}`; with its members in any order, it is read as a whole."""
    end = rf"\s*(?:,\s*{_PAIR}\s*)*\}}"
    return (
        Shape(
            regex.compile(rf'{opening}{_NAMED}"(?:arguments|parameters)"\s*:\s*(?=\{{)'),
            regex.compile(end + closing),
            regex.compile(end),
        ),
        Shape(regex.compile(rf"{opening}(?=\{{)"), regex.compile(closing), regex.compile(""), whole=True),
    )


def _named(head: str, tail: str) -> Shape:
    """A call as a name and the object of its arguments."""
    return Shape(regex.compile(rf"{head}\s*(?=\{{)"), regex.compile(tail), regex.compile(""))


def _tagged(head: str, tail: str, tags: Tags) -> Shape:
    """A call as a name and parameters between tags."""
    return Shape(regex.compile(head), regex.compile(tail), regex.compile(""), tags=tags)


GRAMMAR = CallFormat("grammar", (), _object(r"\s*(?:\[\s*)?", r"\s*(?:(?P<more>,)|\])"), bare="[")
"""Calls that a grammar enforces: a JSON array of them, whatever the chat template writes."""

FORMATS = {
    one.name: one
    for one in (
        CallFormat(
            "hermes", ("<tool_call>",), _object(r"<tool_call>\s*", r"\s*</tool_call>"), tokens=("</tool_call>",)
        ),
        CallFormat(
            "mistral",
            ("[TOOL_CALLS]",),
            (
                *_object(r"\s*(?:\[TOOL_CALLS\]\s*(?:\[\s*)?)?", r"\s*(?:(?P<more>,)|\])"),
                _named(
                    r"\[TOOL_CALLS\]\s*(?P<name>[\w.:/-]{1,256})\s*(?:\[CALL_ID\]\s*\w{1,256}\s*)?(?:\[ARGS\])?", ""
                ),
            ),
            tokens=("[ARGS]", "[CALL_ID]"),
        ),
        CallFormat(
            "deepseek",
            ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
            (
                _named(
                    r"\s*(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>\s*(?:function<｜tool▁sep｜>)?"
                    r"(?P<name>[\w.:/-]{1,256})\s*(?:<｜tool▁sep｜>)?\s*(?:```(?:json)?)?",
                    r"\s*(?:```\s*)?<｜tool▁call▁end｜>\s*(?:(?P<more>(?=<｜tool▁call▁begin｜>))|<｜tool▁calls▁end｜>)",
                ),
            ),
            tokens=("<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
        ),
        CallFormat(
            "qwen3_coder",  # also Seed-OSS's. Models often omit the first mark.
            ("<tool_call>", "<seed:tool_call>", "<function="),
            (
                _tagged(
                    r"(?:<(?:seed:)?tool_call>\s*)?<function=(?P<name>[^<>\s]{1,256})>",
                    r"\s*</(?:seed:)?tool_call>",
                    Tags(
                        regex.compile(r"\s*<parameter=(?P<key>[^<>\n]{1,256})>\n?+(?=[\s\S])"),
                        regex.compile(r"\n?</parameter>(?=\s*(?:<parameter=|</function>|</(?:seed:)?tool_call>))"),
                        regex.compile(r"\s*(?:</function>|(?=</(?:seed:)?tool_call>))"),
                    ),
                ),
            ),
            tokens=("</tool_call>", "</seed:tool_call>"),
        ),
        CallFormat(
            "glm",
            ("<tool_call>",),
            (
                _tagged(
                    r"<tool_call>\s*(?P<name>[\w.:/-]{1,256})(?=\s*(?:<arg_key>|</tool_call>))",
                    r"</tool_call>",
                    Tags(
                        regex.compile(r"\s*<arg_key>(?P<key>[^<>\n]{1,256})</arg_key>\s*<arg_value>"),
                        regex.compile(r"</arg_value>(?=\s*(?:<arg_key>|</tool_call>))"),
                        regex.compile(r"\s*(?=</tool_call>)"),
                    ),
                ),
            ),
            tokens=("</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        ),
        CallFormat(
            "minimax",
            ("<minimax:tool_call>",),
            (
                _tagged(
                    r'\s*(?:<minimax:tool_call>\s*)?<invoke name="(?P<name>[^"<>]{1,256})">',
                    r"\s*(?:(?P<more>(?=<invoke name=))|</minimax:tool_call>)",
                    Tags(
                        regex.compile(r'\s*<parameter name="(?P<key>[^"<>\n]{1,256})">'),
                        regex.compile(r"</parameter>(?=\s*(?:<parameter name=|</invoke>))"),
                        regex.compile(r"\s*</invoke>"),
                    ),
                ),
            ),
            tokens=("</minimax:tool_call>",),
        ),
        CallFormat(
            "kimi",
            ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
            (
                _named(
                    r"\s*(?:<\|tool_calls_section_begin\|>\s*)?<\|tool_call_begin\|>\s*(?:functions\.)?"
                    r"(?P<name>[\w./-]{1,256})(?::\d{1,9})?\s*<\|tool_call_argument_begin\|>",
                    r"\s*<\|tool_call_end\|>\s*(?:(?P<more>(?=<\|tool_call_begin\|>))|<\|tool_calls_section_end\|>)",
                ),
            ),
            tokens=("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
        ),
        CallFormat(
            "llama",
            ("<|python_tag|>",),
            _object(r"\s*(?:<\|python_tag\|>\s*)?", r"\s*(?:(?P<more>[;,]\s*(?=\{)|(?=\{|<\|python_tag\|>)))"),
            bare="{",
        ),
    )
}
"""Formats by name. To add one, add it here, and a template of it to the tests."""
