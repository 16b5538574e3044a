"""Chats become prompts by the model's own template, as in training."""

import json
from pathlib import Path

import pytest

from maas_ray.errors import InvalidError, RequestError
from maas_ray.serve.text.codec import TextCodec
from maas_ray.tasks import load_task
from maas_ray.tasks.text.chat import ChatTemplate
from maas_ray.tasks.text.generation import TextGenerationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from tests.support.errors import raises
from tests.support.prompts import CHAT_ML, TASK, ask


def test_a_template_s_own_special_tokens_become_tokens(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer

    TASK.save(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(f"<|im_{end}|>", special=True) for end in ("start", "end")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(CHAT_ML)
    task = type(TASK).load_state(TASK.spec, {}, tmp_path)
    codec = TextCodec(task, context=64, end_ids=())
    ids = codec.prepare(ask([{"role": "user", "content": "hi"}]))[0].prompt_ids
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tmp_path)
    expected = reference.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    assert ids == expected
    assert tokenizer.token_to_id("<|im_start|>") in ids


def test_a_chat_template_may_refuse_messages_but_is_sandboxed() -> None:
    refusing = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with raises(RequestError, "invalid_value", "roles must alternate"):
        refusing.render([{"role": "user", "content": "x"}])
    escaping = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}", {})
    with raises(RequestError, "invalid_value", "unsafe"):
        escaping.render([{"role": "user", "content": "x"}])


def test_without_a_template_a_chat_is_refused(tmp_path: Path) -> None:
    TASK.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    codec = TextCodec(load_task(tmp_path), context=64, end_ids=())
    with raises(RequestError, "chat_not_supported", "/v1/completions"):
        codec.prepare(ask([{"role": "user", "content": "x"}]))


def test_a_chat_prompt_equals_the_training_text() -> None:
    chats = [
        [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": f"It is {n + 1}."}]
        for n in range(40)
    ]
    spec = TextGenerationSpec(tokenizer=FittedTokenizer(vocab_size=300), sequence_length=64, column="messages")
    rows = [spec.parse_row({"messages": chat}) for chat in chats]
    task = spec.fit(rows)
    [learnt] = task.encode(rows[:1])["input_ids"]
    [asked] = TextCodec(task, context=64, end_ids=()).prepare(ask(chats[0][:1]))
    assert learnt[: len(asked.prompt_ids)].tolist() == asked.prompt_ids
    rest = learnt[len(asked.prompt_ids) :].tolist()
    assert task.tokenizer.decode(rest, skip_special_tokens=True) == "It is 1."
    assert rest.count(task.end_of_text_id) == 1  # at the end of the answer
    assert rest[-1] in asked.end_ids
    for wrong, named in (("x", "str"), ([{"role": "user"}], "messages[0].content")):
        with raises(InvalidError, "wrong_type", named):
            spec.parse_row({"messages": wrong})
    assert spec.parse_row({"messages": []}) is None


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
WITH_TOOLS = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %};{% endfor %}"
)
USER = {"role": "user", "content": "x"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
ANSWERED = {"role": "tool", "content": "5", "tool_call_id": "1"}


def test_a_chat_template_gets_tools_calls_and_results() -> None:
    rendered = ChatTemplate(WITH_TOOLS, {}).render([USER, CALLED, ANSWERED], [TOOL])
    assert rendered == (
        f"<tools>{json.dumps(TOOL)}</tools>user: x;assistant: "
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>;tool: 5;'
    )


@pytest.mark.parametrize(
    ("template", "messages", "tools", "param"),
    [
        (CHAT_ML, [USER], [TOOL], "tools"),
        (CHAT_ML, [USER, CALLED, ANSWERED], [], "messages"),
        (
            "{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}{% endif %}{% endfor %}",
            [USER, ANSWERED],
            [],
            "messages",
        ),
    ],
)
def test_tools_are_refused_if_the_chat_template_ignores_them(
    template: str, messages: list, tools: list, param: str
) -> None:
    with raises(RequestError, "unsupported_parameter") as caught:
        ChatTemplate(template, {}).render(messages, tools)
    assert caught.value.param == param
