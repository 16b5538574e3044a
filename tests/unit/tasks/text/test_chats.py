"""Chats through both doors, the rows of a source and the bodies of requests, are one text."""

import json
from pathlib import Path
from typing import Any

import pytest

from maas_ray.errors import InvalidError, RequestError
from maas_ray.serve.api.openai.requests import ChatBody
from maas_ray.serve.text.codec import TextCodec
from maas_ray.tasks.rows import OPTIONAL_PREFIX
from maas_ray.tasks.text.chat import ChatTemplate
from maas_ray.tasks.text.chat_layouts import chat_of
from maas_ray.tasks.text.generation import TextGeneration, TextGenerationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer, read_files
from tests.support.errors import raises
from tests.support.tokenizer_families import save

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "integer"}, "at": {"type": "string"}}},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"town": 1, "at": null}'}}
USER = {"role": "user", "content": "Weather in town 1?"}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
ANSWER = {"role": "assistant", "content": "It is sunny."}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
# Messages as OpenAI's clients and files write them, with their tools.
CHATS: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [
    ([USER, ANSWER], []),
    ([{"role": "system", "content": "Be kind."}, USER, ANSWER], []),
    ([{"role": "developer", "content": "Be kind."}, USER, ANSWER], []),
    (
        [
            {"role": "user", "content": [{"type": "text", "text": "Weather in "}, {"type": "text", "text": "1?"}]},
            ANSWER,
        ],
        [],
    ),
    ([{**USER, "name": "ann"}, {**ANSWER, "refusal": None, "annotations": [], "tool_calls": None}], []),
    ([USER, CALLING, RESULT, ANSWER], [WEATHER]),
    ([USER, {**CALLING, "content": "Let me see."}, RESULT, ANSWER], [WEATHER]),
    ([USER, {**CALLING, "content": [{"type": "text", "text": "Let me see."}]}, RESULT, ANSWER], [WEATHER]),
    ([USER, {"role": "assistant", "tool_calls": [CALL, {**CALL, "id": "call_2"}]}, RESULT, ANSWER], [WEATHER]),
    ([USER, ANSWER, USER, ANSWER], [WEATHER, {**WEATHER, "function": {**WEATHER["function"], "strict": None}}]),
]
WITH_EVERYTHING = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m.role }} {{ m.name }} {{ m.tool_call_id }}>{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant  >{% endif %}"
)


def renamed(function: dict[str, Any], schema: str) -> dict[str, Any]:
    """A function whose parameters have another name."""
    return {schema if name == "parameters" else name: value for name, value in function.items()}


def fitted() -> TextGeneration:
    spec = TextGenerationSpec(tokenizer=FittedTokenizer(vocab_size=400), sequence_length=64, column="messages")
    return spec.fit([parsed(spec, *chat) for chat in CHATS])


def given(directory: Path) -> TextGeneration:
    tokenizer = save("gpt_2", directory, chat_template=WITH_EVERYTHING)
    return TextGenerationSpec(tokenizer=str(tokenizer), sequence_length=64, column="messages").fit([])


def parsed(spec: TextGenerationSpec, messages: Any, tools: Any = None) -> dict[str, Any]:
    row = spec.parse_row({"messages": messages, **({f"{OPTIONAL_PREFIX}tools": tools} if tools else {})})
    assert row is not None
    return row


@pytest.mark.parametrize("kind", ["fitted", "given"])
def test_both_doors_render_one_text(kind: str, tmp_path: Path) -> None:
    task = fitted() if kind == "fitted" else given(tmp_path)
    template, codec = task.chat, TextCodec(task, context=1024, end_ids=(), tool_calls="none")
    assert template is not None
    for messages, tools in CHATS:
        row = parsed(task.spec, messages, tools)
        learnt = task.encode([row])["input_ids"][0].tolist()
        body = {"model": "m", "messages": messages, "tools": tools}
        asked = ChatBody.model_validate(body).request()
        assert template.whole(asked.prompt, list(asked.tools)) == template.whole(*chat_of(row))
        # The prompt for each answer is the beginning of the text that was learnt.
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                request = ChatBody.model_validate(body | {"messages": messages[:index], "max_tokens": 1}).request()
                [prepared] = codec.prepare(request)
                assert learnt[: len(prepared.prompt_ids)] == prepared.prompt_ids
                assert task.tokenizer.decode(prepared.prompt_ids)


def test_the_text_of_calls_and_tools() -> None:
    task = fitted()
    row = parsed(task.spec, [USER, CALLING, RESULT, ANSWER], [WEATHER])
    text = task.tokenizer.decode(task.encode([row])["input_ids"][0].tolist(), skip_special_tokens=False)
    assert text == (
        f"<|im_start|>tools\n{json.dumps(WEATHER)}\n<|im_end|>\n"
        "<|im_start|>user\nWeather in town 1?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"town": 1, "at": null}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\nIt is sunny.<|im_end|>"
    )


@pytest.mark.parametrize("arguments", ['{"b": 1, "a": [2]}', {"b": 1, "a": [2]}, {"b": 1, "a": [2], "other": None}])
def test_arguments_are_one_object_as_text_and_as_arrow_reads_them(arguments: Any) -> None:
    spec = TextGenerationSpec(column="messages")
    call = {"function": {"name": "f", "arguments": arguments}}
    row = parsed(spec, [USER, {"role": "assistant", "content": None, "tool_calls": [call], "name": None}])
    [made] = json.loads(row["messages"])[1]["tool_calls"]
    assert made == {"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": [2]}}}
    assert list(made["function"]["arguments"]) == ["b", "a"]  # in the order of the source


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER],
        json.dumps([WEATHER]),
        [WEATHER["function"]],
        [
            {
                **WEATHER,
                "function": {"parameters": WEATHER["function"]["parameters"], **WEATHER["function"], "strict": True},
            }
        ],
        [{"type": "function", "function": {**WEATHER["function"], "other": None}}],
        [renamed(WEATHER["function"], "input_schema")],  # Anthropic
        [renamed(WEATHER["function"], "inputSchema")],  # MCP
    ],
)
def test_tools_have_one_form(tools: Any) -> None:
    row = parsed(TextGenerationSpec(column="messages"), [USER, ANSWER], tools)
    assert row["tools"] == json.dumps([WEATHER])


@pytest.mark.parametrize(
    ("message", "code", "named"),
    [
        ({"role": "assistant", "content": None}, "wrong_type", "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "unsupported_content", "image_url"),
        ({"content": "x"}, "wrong_type", "messages[0].role"),
        ({"from": "human", "value": "x"}, "wrong_layout", "column: conversations"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "unsupported_field", "messages[0].function_call"),
        (
            {"role": "assistant", "tool_calls": [{"function": {}}]},
            "wrong_type",
            "messages[0].tool_calls[0].function.name",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "wrong_type",
            "messages[0].tool_calls[0].function.arguments",
        ),
        ("x", "wrong_type", "messages[0] is a str"),
    ],
)
def test_messages_that_would_not_be_rendered_are_quarantined(message: Any, code: str, named: str) -> None:
    with raises(InvalidError, code, named):
        TextGenerationSpec(column="messages").parse_row({"messages": [message]})


def test_parts_that_a_template_omits_are_refused_at_both_doors(tmp_path: Path) -> None:
    tokenizer = save("gpt_2", tmp_path, chat_template="{% for m in messages %}{{ m.role + m.content }}{% endfor %}")
    task = TextGenerationSpec(tokenizer=str(tokenizer), sequence_length=64, column="messages").fit([])
    codec = TextCodec(task, context=1024, end_ids=())
    for messages, tools, omitted in (([USER, ANSWER], [WEATHER], "tools"), ([USER, CALLING], [], "tool calls")):
        with raises(InvalidError, "invalid_chat", omitted):
            task.encode([parsed(task.spec, messages, tools)])
        body = {"model": "m", "messages": messages, "tools": tools}
        with raises(RequestError, "unsupported_parameter", omitted):
            codec.prepare(ChatBody.model_validate(body).request())


def test_a_template_that_cannot_add_objects_is_an_error_of_the_chat() -> None:
    template = ChatTemplate("{{ 'x' + messages[0]['tool_calls'][0]['function']['arguments'] }}", {})
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    with raises(RequestError, "invalid_value", "str"):
        template.render([{"role": "assistant", "content": "", "tool_calls": [call]}])


def test_objects_that_are_nested_too_deeply_are_the_client_s_error() -> None:
    parameters: dict[str, Any] = {}
    for _ in range(700):
        parameters = {"a": parameters}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    with raises(RequestError, "invalid_value", "tools"):
        ChatBody.model_validate({"model": "m", "messages": [USER], "tools": tools}).request()
    with raises(InvalidError, "wrong_type", "nested"):
        parsed(TextGenerationSpec(column="messages"), [USER], tools)


# --- layouts of other tools

CONVERSATION = [{"from": "human", "value": "Weather in town 1?"}, {"from": "gpt", "value": "It is sunny."}]


@pytest.mark.parametrize(
    ("column", "row", "messages"),
    [
        ("conversations", {"conversations": CONVERSATION}, [USER, ANSWER]),
        (
            "conversations",
            {"conversations": CONVERSATION, "optional/system": "Be kind.", "optional/tools": None},
            [{"role": "system", "content": "Be kind."}, USER, ANSWER],
        ),
        (
            "conversations",
            {
                "conversations": [
                    CONVERSATION[0],
                    {"from": "function_call", "value": '{"name": "weather", "arguments": {"town": 1}}'},
                    {"from": "observation", "value": "sunny"},
                    CONVERSATION[1],
                ]
            },
            [
                USER,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"town": 1}}}],
                },
                {"role": "tool", "content": "sunny"},
                ANSWER,
            ],
        ),
        ("instruction", {"instruction": USER["content"], "output": ANSWER["content"]}, [USER, ANSWER]),
        (
            "instruction",
            {
                "instruction": "Add.",
                "output": "3",
                "optional/input": "1 and 2",
                "optional/system": "Be kind.",
                "optional/history": [["Hello", "Hi"]],
            },
            [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi"},
                {"role": "user", "content": "Add.\n1 and 2"},
                {"role": "assistant", "content": "3"},
            ],
        ),
        (
            "instruction",
            {"instruction": USER["content"], "output": "x", "optional/input": ""},
            [USER, {**ANSWER, "content": "x"}],
        ),
    ],
)
def test_layouts_of_other_tools(column: str, row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    spec = TextGenerationSpec(column=column)
    made = spec.parse_row(row)
    assert made is not None
    assert json.loads(made["messages"]) == messages
    assert spec.inputs == ("messages",)


@pytest.mark.parametrize(
    ("column", "row", "code", "named"),
    [
        ("conversations", {"conversations": [{"from": "alien", "value": "x"}]}, "unknown_role", "alien"),
        ("conversations", {"conversations": "x"}, "wrong_type", "conversations is a str"),
        ("instruction", {"instruction": 5, "output": "x"}, "wrong_type", "instruction is a int"),
    ],
)
def test_rows_that_are_not_in_their_layout_are_quarantined(column: str, row: dict, code: str, named: str) -> None:
    with raises(InvalidError, code, named):
        TextGenerationSpec(column=column).parse_row(row)


@pytest.mark.parametrize("row", [{"conversations": []}, {"conversations": None}])
def test_an_empty_conversation_is_empty(row: dict) -> None:
    assert TextGenerationSpec(column="conversations").parse_row(row) is None
    for instruction, output in (("", None), ("Add.", ""), ("Add.", None), (" ", "3")):
        row = {"instruction": instruction, "output": output}
        assert TextGenerationSpec(column="instruction").parse_row(row) is None


def test_roles_have_the_names_that_templates_know() -> None:
    roles = ["System", "human", "gpt", "USER", "model", "ipython", "function"]
    made = parsed(TextGenerationSpec(column="messages"), [{"role": role, "content": "x"} for role in roles])
    assert [message["role"] for message in json.loads(made["messages"])] == [
        "system", "user", "assistant", "user", "assistant", "ipython", "function"
    ]  # fmt: skip


# --- templates by name

PLAIN_TEMPLATE, TOOL_TEMPLATE = "{{ messages[0].content }}", "{{ tools | tojson }}{{ messages[0].content }}"


def as_list(directory: Path) -> None:
    templates = [{"name": "default", "template": PLAIN_TEMPLATE}, {"name": "tool_use", "template": TOOL_TEMPLATE}]
    save("gpt_2", directory, chat_template=templates)


def as_files(directory: Path) -> None:
    save("gpt_2", directory)
    (directory / "chat_template.jinja").write_text(PLAIN_TEMPLATE)
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text(TOOL_TEMPLATE)


@pytest.mark.parametrize("write", [as_list, as_files])
def test_templates_are_chosen_as_transformers_chooses_them(write: Any, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    write(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    task = TextGenerationSpec(tokenizer=str(tmp_path), sequence_length=8).fit([])
    (tmp_path / "saved").mkdir()
    task.save(tmp_path / "saved")
    for files in (tmp_path, tmp_path / "saved"):
        template = ChatTemplate.of(read_files(files))
        assert template is not None
        for tools in (None, [WEATHER]):
            expected = theirs.apply_chat_template([USER], tools=tools, tokenize=False, add_generation_prompt=True)
            assert template.render([USER], tools) == expected


def test_templates_without_a_default_one_need_tools() -> None:
    template = ChatTemplate({"tool_use": TOOL_TEMPLATE}, {})
    assert template.render([USER], [WEATHER]).endswith(USER["content"])
    with raises(RequestError, "chat_not_supported", "tool_use"):
        template.render([USER])


def test_templates_know_a_model_s_own_special_tokens(tmp_path: Path) -> None:
    save(
        "gpt_2", tmp_path, chat_template="{{ bos_token }}{{ image_token }}", extra_special_tokens={"image_token": "<i>"}
    )
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": {"content": "<b>"}}')
    template = ChatTemplate.of(read_files(tmp_path))
    assert template is not None
    assert template.render([USER]) == "<b><i>"
