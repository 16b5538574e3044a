"""Tool calls: read from every format as its template writes it, in pieces of any size, and no text is lost."""

import json
from typing import Any, get_args

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maas_ray.serve.spec import ServingOptions
from maas_ray.serve.text.answer_parts import AnswerParser, ReasoningParser
from maas_ray.serve.text.call_formats import FORMATS, GRAMMAR
from maas_ray.serve.text.json_object import ObjectReader
from maas_ray.serve.text.tool_calls import CallParser, format_of
from maas_ray.serve.text.types import CallPiece
from maas_ray.tasks.text.chat import MARKED, PLAIN, ChatTemplate

# The parts of published templates that write calls, without their prompts: Hermes 2 Pro and Qwen 2.5; Mistral Nemo and
# Mistral Small 3.2; DeepSeek V3 and V3.1, as vLLM's examples have them; Llama 3.1; Qwen 3 Coder as it was first, and as
# it is now; Seed-OSS; GLM 4.5 and 4.7; MiniMax M2; Kimi K2.


def template(calls: str, answer: str = "<assistant>") -> str:
    """A template that shows tools before the messages, and writes calls in one way."""
    return (
        "{% if tools %}<tools>{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>"
        "{{ m.content }}{% if m.tool_calls %}" + calls + "{% endif %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}" + answer + "{% endif %}"
    )


SHORT_IDS = "{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}"
TEMPLATES = {
    "hermes": template("{% for c in m.tool_calls %}\n<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"),
    "hermes of a model that reasons": template(
        "{% for c in m.tool_calls %}\n<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}",
        "<assistant><think>\n",
    ),
    "mistral": template(
        "[TOOL_CALLS][{% for c in m.tool_calls %}" + SHORT_IDS + "{% set out = c.function | tojson %}{{ out[:-1] }}, "
        '"id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]'
    ),
    "mistral v13": template(
        "{% for c in m.tool_calls %}" + SHORT_IDS + "[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]"
        "{{ c.function.arguments | tojson }}{% endfor %}"
    ),
    "deepseek": template(
        "<｜tool▁calls▁begin｜>{% for c in m.tool_calls %}{% if not loop.first %}\n{% endif %}<｜tool▁call▁begin｜>"
        "{{ c.type }}<｜tool▁sep｜>{{ c.function.name }}\n```json\n{{ c.function.arguments | tojson }}\n```"
        "<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>"
    ),
    "deepseek v3.1": template(
        "{% for c in m.tool_calls %}{% if loop.first %}<｜tool▁calls▁begin｜>{% endif %}"
        "{{ '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' }}"
        "{{ '' + c.function.arguments + '<｜tool▁call▁end｜>' }}"
        "{% endfor %}<｜tool▁calls▁end｜>"
    ),
    "llama": template(
        "{% set c = m.tool_calls[0].function %}"
        "{{ '{\"name\": \"' + c.name + '\", \"parameters\": ' }}{{ c.arguments | tojson }}{{ '}' }}"
    ),
}
PLAIN_VALUE = "{{ v if v is string else v | tojson(ensure_ascii=False) }}"
PYTHON_VALUE = (
    "{{ v | tojson if v is mapping or (v is sequence and v is not string) else v | string }}"  # `True`, `None`
)


def tagged(begin: str, open: str, close: str, end: str, value: str = PLAIN_VALUE, calls: str = "") -> str:
    """A template that writes each call as its name and parameters between tags."""
    each = f"{{% for k, v in c.function.arguments.items() %}}{open}{value}{close}{{% endfor %}}"
    return template(f"{calls}{{% for c in m.tool_calls %}}{begin}{each}{end}{{% endfor %}}")


PARAMETER = "<parameter={{ k }}>"
TAGGED = {
    "qwen3_coder": tagged(
        "\n<tool_call>\n<function={{ c.function.name }}>\n",
        PARAMETER + "\n",
        "\n</parameter>\n",
        "</function>\n</tool_call>",
        PYTHON_VALUE,
    ),
    "qwen3_coder of 2026": tagged(
        "\n<tool_call>\n<function={{ c.function.name }}>\n",
        PARAMETER + "\n",
        "\n</parameter>\n",
        "</function>\n</tool_call>",
    ),
    "qwen3_coder of seed": tagged(
        "\n<seed:tool_call>\n<function={{ c.function.name }}>\n",
        PARAMETER,
        "</parameter>\n",
        "</function>\n</seed:tool_call>",
    ),
    "glm 4.5": tagged(
        "\n<tool_call>{{ c.function.name }}\n",
        "<arg_key>{{ k }}</arg_key>\n<arg_value>",
        "</arg_value>\n",
        "</tool_call>",
    ),
    "glm 4.7": tagged(
        "<tool_call>{{ c.function.name }}", "<arg_key>{{ k }}</arg_key><arg_value>", "</arg_value>", "</tool_call>"
    ),
    "minimax": template(
        '\n<minimax:tool_call>\n{% for c in m.tool_calls %}<invoke name="{{ c.function.name }}">\n'
        '{% for k, v in c.function.arguments.items() %}<parameter name="{{ k }}">'
        + PLAIN_VALUE
        + "</parameter>\n{% endfor %}</invoke>\n{% endfor %}</minimax:tool_call>"
    ),
}
TEMPLATES |= TAGGED | {
    "kimi": template(
        "<|tool_calls_section_begin|>{% for c in m.tool_calls %}<|tool_call_begin|>{{ c.id }}"
        "<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}<|tool_call_end|>{% endfor %}"
        "<|tool_calls_section_end|>"
    )
}
SPECIAL = {"eos_token": "</s>"}
NAMES = ["get_weather", "add-2"]
TOOLS = [{"type": "function", "function": {"name": name, "description": "", "parameters": {}}} for name in NAMES]
USER = {"role": "user", "content": "x"}


def calling(*calls: tuple[str, dict]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": f"call_{index}_of_many", "type": "function", "function": {"name": name, "arguments": arguments}}
            for index, (name, arguments) in enumerate(calls)
        ],
    }


def read(parser: CallParser | AnswerParser, text: str, sizes: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """The content and the calls of an answer that arrives in pieces of these sizes."""
    pieces: list[str | CallPiece] = []
    at, sizes = 0, [*sizes, len(text)]
    for size in sizes:
        pieces += parser.push(text[at : at + size])
        at += size
    pieces += parser.push("", final=True)
    calls: dict[int, tuple[str, str]] = {}
    for piece in pieces:
        if isinstance(piece, CallPiece):
            name, arguments = calls.get(piece.index, ("", ""))
            assert (piece.name == "") == (piece.index in calls)  # the name comes once, and first
            calls[piece.index] = name + piece.name, arguments + piece.arguments
    assert list(calls) == list(range(len(calls)))
    return "".join(piece for piece in pieces if isinstance(piece, str)), list(calls.values())


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_is_read_from_the_chat_template(name: str) -> None:
    found = format_of(ChatTemplate(TEMPLATES[name], SPECIAL))
    assert found is not None
    assert found.name == name.split(maxsplit=1)[0]


def test_a_deployment_can_name_every_format() -> None:
    assert set(get_args(ServingOptions.model_fields["tool_calls"].annotation)) == {"auto", "none", *FORMATS}


def schema_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """The schema of a function that takes these arguments."""
    kinds = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object", type(None): "null"}
    return {"type": "object", "properties": {name: {"type": kinds[type(it)]} for name, it in arguments.items()}}


def test_templates_without_calls_or_with_unknown_ones_have_no_format() -> None:
    assert format_of(ChatTemplate(PLAIN, SPECIAL)) is None
    assert format_of(ChatTemplate(template("<call>{{ m.tool_calls | tojson }}</call>"), SPECIAL)) is None
    assert format_of(ChatTemplate(MARKED, SPECIAL)) is FORMATS["hermes"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["}", '"', "\\", "</s", "\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(st.text(min_size=1, max_size=4), VALUES, max_size=3)
NAMED_ARGUMENTS = st.dictionaries(st.from_regex("[a-zA-Zé_][a-zé0-9_.-]{0,3}", fullmatch=True), VALUES, max_size=3)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_calls_are_read_as_the_template_wrote_them(data: st.DataObject) -> None:
    """Transformers renders the calls; they come back the same, whole or in pieces."""
    name = data.draw(st.sampled_from(sorted(TEMPLATES)))
    one = FORMATS[name.split(maxsplit=1)[0]]
    most = 1 if name == "llama" else 3
    arguments = NAMED_ARGUMENTS if name in TAGGED else ARGUMENTS
    calls = data.draw(st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=most))
    functions = {called: schema_of(dict(calls)[called]) for called in dict(calls)}
    if name in TAGGED:
        hypothesis.assume(len(functions) == len(calls))  # one schema for each function
    rendered = ChatTemplate(TEMPLATES[name], SPECIAL).whole([USER, calling(*calls)], TOOLS)
    answer = rendered.rpartition("<assistant>")[2].removesuffix("</s>")
    sizes = data.draw(st.lists(st.integers(1, 9), max_size=60))
    streamed = data.draw(st.booleans())
    content, found = read(CallParser(one, functions, streamed=streamed), answer, sizes)
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert content == ""


FUNCTIONS: dict[str, dict[str, Any]] = {
    "f": {"properties": {"a": {"type": "integer"}, "s": {"type": "string"}, "b": {"type": ["boolean", "null"]}}},
    "g": {},
}
# name of the format, answer, content, calls; if they differ, content and calls of a stream
CALL = '{"name": "f", "arguments": {"a": 1}}'
READ: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", f"I look.\n\n<tool_call>\n{CALL}\n</tool_call>", "I look.", [("f", '{"a": 1}')]),
    ("hermes", f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}", "", [("f", '{"a": 1}')] * 2),
    ("hermes", f"<tool_call>{CALL}</tool_call> Done.", " Done.", [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "g"}</tool_call>', "", [("g", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "g", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("g", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "g"}</tool_call>', "", [("g", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}</tool_call>', "", [("f", '{"a": "x\\ny"}')]),
    ("hermes", "1 < 2 <tool", "1 < 2 <tool", []),
    ("hermes", "<tool_call>not JSON</tool_call>", "<tool_call>not JSON</tool_call>", []),
    ("hermes", '<tool_call>["f"]</tool_call>', '<tool_call>["f"]</tool_call>', []),
    ("hermes", '<tool_call>{"a": 1}</tool_call>', '<tool_call>{"a": 1}</tool_call>', []),
    ("mistral", 'No. [TOOL_CALLS]f[ARGS]{"a": 1}', "No.", [("f", '{"a": 1}')]),
    ("mistral", '[TOOL_CALLS]f{"a": 1}', "", [("f", '{"a": 1}')]),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {CALL}", "", [("f", '{"a": 1}')] * 2),
    ("mistral", "[1, 2] and [TOOL", "[1, 2] and [TOOL", []),
    ("llama", "<|python_tag|>" + CALL + ";" + CALL, "", [("f", '{"a": 1}')] * 2),
    ("llama", '\n{"type": "function", "name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    ("llama", '{"name": "Ann", "parameters": {}}', '{"name": "Ann", "parameters": {}}', []),  # not a function
    ("llama", '{"city": "Rome"} it is', '{"city": "Rome"} it is', []),
    ("llama", f"See {CALL}", f"See {CALL}", []),
    ("llama", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    # Marks that models omit, white space that they add, tags within values.
    ("qwen3_coder", "I look.\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>", "I look.",
     [("f", '{"a": 1}')]),
    ("qwen3_coder", "<tool_call><function=f><parameter=a>1</parameter></tool_call>", "", [("f", '{"a": 1}')]),
    ("qwen3_coder", "<tool_call>\n<function=g>\n</function>\n</tool_call>", "", [("g", "{}")]),
    ("qwen3_coder", "<function=f><parameter=s>\n</parameter> x\n</parameter>\n</function>", "",
     [("f", '{"s": "</parameter> x"}')]),
    ("qwen3_coder", "<function=f>\n<parameter=b>\nTrue\n</parameter>\n<parameter=s>\n5\n\n</parameter>\n</function>",
     "", [("f", '{"b": true, "s": "5\\n"}')]),
    ("qwen3_coder", "<tool_call>\nf\n</tool_call> <function", "<tool_call>\nf\n</tool_call> <function", []),
    ("glm", "<tool_call>f\n<arg_key>b</arg_key>\n<arg_value>null</arg_value>\n</tool_call>\nDone.", "\nDone.",
     [("f", '{"b": null}')]),
    ("glm", "<tool_call>not a call</tool_call>", "<tool_call>not a call</tool_call>", []),
    ("minimax", '<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">x</parameter>\n</invoke>\n'
     '<invoke name="g">\n</invoke>\n</minimax:tool_call>', "", [("f", '{"a": "x"}'), ("g", "{}")]),
    ("kimi", '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}'
     '<|tool_call_end|><|tool_call_begin|>g<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>',
     "", [("f", '{"a": 1}'), ("g", "{}")]),
    ("grammar", ' [ {"name":"f", "parameters" :{"a": 1}} , {"name":"g","parameters":{}} ] ', "",
     [("f", '{"a": 1}'), ("g", "{}")]),
    ("grammar", '{"answer": 5}', '{"answer": 5}', []),
]  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("name", "answer", "content", "calls"), READ)
def test_answers_with_and_without_calls(
    name: str, answer: str, content: str, calls: list[tuple[str, str]], streamed: bool
) -> None:
    one = FORMATS.get(name, GRAMMAR)
    for size in (1, 2, 7, len(answer)):
        parser = CallParser(one, FUNCTIONS, streamed=streamed)
        assert read(parser, answer, [size] * (len(answer) // size)) == (content, calls)
        assert parser.calls == len(calls)


@pytest.mark.parametrize("broken", ["{'a': 1}", '{"a": 1', '{"a" 1}', "{"])
def test_a_broken_call_stays_text_and_in_a_stream_arguments(broken: str) -> None:
    answer = 'I look.\n<tool_call>{"name": "f", "arguments": ' + broken
    assert read(CallParser(FORMATS["hermes"], {"f": {}}, streamed=False), answer, [5, 9]) == (answer, [])
    assert read(CallParser(FORMATS["hermes"], {"f": {}}, streamed=True), answer, [5, 9]) == ("I look.", [("f", broken)])


@pytest.mark.parametrize("broken", ["<parameter=s>\nRo", "<parameter=s>\nRo\n</para", "\nwhat", "<parameter=a>\n1"])
def test_a_tagged_call_that_ends_too_early_is_treated_alike(broken: str) -> None:
    answer = f"I look.\n<tool_call>\n<function=f>{broken}"
    one = FORMATS["qwen3_coder"]
    assert read(CallParser(one, FUNCTIONS, streamed=False), answer, [5, 9]) == (answer, [])
    content, ((name, arguments),) = read(CallParser(one, FUNCTIONS, streamed=True), answer, [5, 9, 1, 1, 1])
    assert (content.partition("\n")[0], name) == ("I look.", "f")
    assert arguments == {"<parameter=s>\nRo": '{"s": "Ro'}.get(broken, arguments)


@given(st.text(alphabet='{}[]"\\ab\n', max_size=30), st.lists(st.integers(1, 4), max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_text_is_lost(text: str, sizes: list[int]) -> None:
    for one in (*FORMATS.values(), GRAMMAR):
        for mark in ("", *one.marks):
            answer = f"a \n{mark}{text}"
            content, calls = read(CallParser(one, {"f": {}}, streamed=False), answer, sizes)
            assert calls or content == answer


def test_the_end_of_an_object_does_not_depend_on_its_pieces() -> None:
    text = '{"a": "\\"}{", "b": [{"c": "\\\\"}]}'
    for size in range(1, len(text) + 1):
        reader, read_text = ObjectReader(), ""
        for at in range(0, len(text), size):
            assert not reader.complete
            piece, count = reader.push(text[at : at + size])
            read_text += piece
            assert count == len(text[at : at + size])
        assert (reader.complete, read_text) == (True, text)
    assert ObjectReader().push(text + "} rest")[1] == len(text)


# --- reasoning


@pytest.mark.parametrize(
    ("answer", "begun", "reasoning", "content"),
    [
        ("<think>\nA < B\n</think>\n\nYes.", False, "A < B", "Yes."),
        ("\n<think>a</think>b", False, "a", "b"),
        ("a\n</think>\n\nb </think> c", True, "a", "b </think> c"),
        ("<think></think>b", False, "", "b"),
        ("<think>cut </thi", False, "cut </thi", ""),
        ("<thin", False, "", "<thin"),
        ("b <think>c</think>", False, "", "b <think>c</think>"),
        (" b", False, "", " b"),
    ],
)
def test_reasoning_is_separated(answer: str, begun: bool, reasoning: str, content: str) -> None:
    for size in range(1, len(answer) + 1):
        parser = AnswerParser(ReasoningParser(("<think>", "</think>"), begun=begun))
        pieces = [parser.push(answer[at : at + size]) for at in range(0, len(answer), size)]
        pieces.append(parser.push("", final=True))
        assert ("".join(one.reasoning for one in pieces), "".join(one.content for one in pieces)) == (
            reasoning,
            content,
        )


def test_a_call_follows_reasoning_and_only_one_is_taken_if_one_is_allowed() -> None:
    answer = f"<think>hm</think>\n\n<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"
    for several, count in ((True, 2), (False, 1)):
        calls = CallParser(FORMATS["hermes"], {"f": {}}, streamed=False)
        parser = AnswerParser(ReasoningParser(("<think>", "</think>"), begun=False), calls, several_calls=several)
        parts = parser.push(answer, final=True)
        assert (parts.reasoning, parts.content, len(parts.calls)) == ("hm", "", count)
        assert parser.called
        assert parser.ended is not several
