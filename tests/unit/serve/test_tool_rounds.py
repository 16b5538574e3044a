"""Clients complete rounds with tools, from HTTP to tokens, while a script takes the model's place."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.models import send
from tests.support.scripted import chat_task, scripted_app

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}, "required": ["a"]},
    },
}
QUESTION = {"role": "user", "content": "Weather?"}
ROME = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
SUM = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
ANSWERS = [f"I look.\n{ROME}", f"{SUM}\n{ROME}", "It is sunny."]


def by_round(prompt: str) -> str:
    """A call, then two calls, then an answer: by the number of results that the prompt holds."""
    return ANSWERS[{0: 0, 1: 1, 3: 2}[prompt.count("<|im_start|>tool\n")]]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory):
    return chat_task(tmp_path_factory.mktemp("tokenizer"))


async def round_trip(client: openai.AsyncOpenAI, *, stream: bool) -> list[Any]:
    """The finish reasons of a loop as agents run it, and its messages."""
    messages: list[Any] = [QUESTION]
    reasons = []
    while not reasons or reasons[-1] == "tool_calls":
        asked: Any = {"model": "m", "messages": messages, "tools": [WEATHER, ADD]}
        if stream:
            async with client.chat.completions.stream(**asked) as events:
                async for _ in events:
                    pass
                choice = (await events.get_final_completion()).choices[0]
        else:
            choice = (await client.chat.completions.create(**asked)).choices[0]
        reasons.append(choice.finish_reason)
        messages.append(choice.message)
        for call in choice.message.tool_calls or ():
            assert call.id.startswith("call_")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": f"{call.function.name} 5"})
    return [reasons, *messages]


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_client_completes_a_round_of_tools(task, stream: bool) -> None:
    app, engine = scripted_app(task, by_round)

    async def run() -> list[Any]:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        async with openai.AsyncOpenAI(base_url="http://test/v1", api_key="-", http_client=http) as client:
            return await round_trip(client, stream=stream)

    reasons, *messages = asyncio.run(run())
    assert reasons == ["tool_calls", "tool_calls", "stop"]
    shown = [message if isinstance(message, dict) else message.model_dump() for message in messages]
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for message in shown
        for call in message.get("tool_calls") or ()
    ]
    assert calls == [("get_weather", {"city": "Rome"}), ("add", {"a": 2}), ("get_weather", {"city": "Rome"})]
    contents = [message["content"] or "" for message in shown if message["role"] == "assistant"]
    assert contents == ["I look.", "", "It is sunny."]
    # The model reads the round as it wrote it.
    assert ANSWERS[1] in engine_text(task, engine)


def engine_text(task, engine) -> str:
    return str(task.tokenizer.decode(engine.asked[-1].prompt_ids, skip_special_tokens=False))


def ask(app, **body: Any) -> dict[str, Any]:
    response = send(app, "POST", "/v1/chat/completions", json={"model": "m", "messages": [QUESTION], **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def events(app, **body: Any) -> list[dict[str, Any]]:
    sent = {"model": "m", "messages": [QUESTION], "stream": True, **body}
    lines = send(app, "POST", "/v1/chat/completions", json=sent).text.split("\n\n")
    chunks = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    return [{**chunk["delta"], "finish_reason": chunk["finish_reason"]} for chunk in chunks]


def test_a_streamed_call_begins_with_its_name(task) -> None:
    app, _ = scripted_app(task, by_round)
    deltas = [call for chunk in events(app, tools=[WEATHER]) for call in chunk.get("tool_calls", ())]
    first, *rest = deltas
    assert (first["index"], first["type"], first["function"]) == (
        0,
        "function",
        {"name": "get_weather", "arguments": ""},
    )
    assert first["id"].startswith("call_")
    assert len(rest) > 1
    assert all(set(delta) == {"index", "function"} and set(delta["function"]) == {"arguments"} for delta in rest)
    assert json.loads("".join(delta["function"]["arguments"] for delta in rest)) == {"city": "Rome"}
    assert events(app, tools=[WEATHER])[-1]["finish_reason"] == "tool_calls"


def test_calls_stay_text_without_tools_and_if_the_deployment_says_so(task) -> None:
    for options, body in (
        ({}, {}),
        ({}, {"tools": [WEATHER], "tool_choice": "none"}),
        ({"tool_calls": "none"}, {"tools": [WEATHER]}),
    ):
        app, _ = scripted_app(task, by_round, **options)
        choice = ask(app, **body)["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWERS[0], "stop")
        assert "tool_calls" not in choice["message"]


def test_one_call_if_several_are_not_allowed(task) -> None:
    app, _ = scripted_app(task, lambda _: f"{ROME}{SUM}")
    several = ask(app, tools=[WEATHER, ADD])["choices"][0]
    assert [call["function"]["name"] for call in several["message"]["tool_calls"]] == ["get_weather", "add"]
    assert several["message"]["content"] is None
    single = ask(app, tools=[WEATHER, ADD], parallel_tool_calls=False)["choices"][0]
    assert [call["function"]["name"] for call in single["message"]["tool_calls"]] == ["get_weather"]
    assert single["finish_reason"] == "tool_calls"


def test_an_answer_that_is_cut_within_a_call_loses_nothing(task) -> None:
    app, _ = scripted_app(task, by_round)
    choice = ask(app, tools=[WEATHER], max_tokens=60)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ANSWERS[0][: len(choice["message"]["content"])]
    assert "tool_call>" in choice["message"]["content"]


def test_an_unknown_format_of_calls_is_refused(tmp_path: Path) -> None:
    template = "{{ tools | tojson }}{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls }}{% endfor %}"
    app, _ = scripted_app(chat_task(tmp_path, template=template), by_round)
    body = {"model": "m", "messages": [QUESTION], "tools": [WEATHER]}
    response = send(app, "POST", "/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "tools", "unsupported_parameter")
    app, _ = scripted_app(chat_task(tmp_path, template=template), lambda _: ROME, tool_calls="hermes")
    assert ask(app, tools=[WEATHER])["choices"][0]["finish_reason"] == "tool_calls"


def test_special_tokens_that_spell_calls_and_reasoning_are_read(tmp_path: Path) -> None:
    template = (
        "{{ tools | tojson }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}"
        "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}\n{% endfor %}"
        "{# [THINK] [/THINK] #}"
    )
    special = ["[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "[INST]"]
    task = chat_task(tmp_path, special, template)
    said = '[THINK]Hm é.[/THINK][INST]I look.[TOOL_CALLS]get_weather[ARGS]{"city": "Köln"}'
    app, _ = scripted_app(task, lambda _: said)
    message = ask(app, tools=[WEATHER])["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm é.", "I look.")
    assert message["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Köln"}'}
    # Without tools, special tokens of calls are left out of the text, as all others are.
    assert ask(app)["choices"][0]["message"]["content"] == 'I look.get_weather{"city": "Köln"}'
    chunks = events(app, tools=[WEATHER])
    assert "".join(chunk.get("reasoning_content", "") for chunk in chunks) == "Hm é."
    assert "".join(chunk.get("content", "") for chunk in chunks) == "I look."


def test_tagged_calls_have_values_of_their_types_and_stream(tmp_path: Path) -> None:
    from tests.unit.serve.text.test_tool_calls import TEMPLATES

    task = chat_task(tmp_path, template=TEMPLATES["qwen3_coder"])
    tags = "<parameter=a>\n2\n</parameter>\n<parameter=city>\n2 Köln am Rhein\n</parameter>\n"
    function = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}, "city": {"type": "string"}}}}
    said = f"I add.\n\n<tool_call>\n<function=add>\n{tags}</function>\n</tool_call>" * 2
    app, _ = scripted_app(task, lambda _: said)
    tools = [{"type": "function", "function": function}]
    message = ask(app, tools=tools, parallel_tool_calls=False)["choices"][0]["message"]
    assert (message["content"], len(message["tool_calls"])) == ("I add.", 1)
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"a": 2, "city": "2 Köln am Rhein"}
    calls = [
        call for chunk in events(app, tools=tools, parallel_tool_calls=False) for call in chunk.get("tool_calls", ())
    ]
    assert {call["index"] for call in calls} == {0}
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"a": 2, "city": "2 Köln am Rhein"}
    assert len([call for call in calls if set(call["function"]["arguments"]) & set("Könamhei")]) > 2  # in pieces


def test_a_template_that_names_functions_in_identifiers_gets_such(tmp_path: Path) -> None:
    from tests.unit.serve.text.test_tool_calls import TEMPLATES

    template = TEMPLATES["kimi"].replace("{{ m.content }}", "{{ m.tool_call_id }}{{ m.content }}")
    task = chat_task(tmp_path, template=template)
    app, engine = scripted_app(task, lambda _: "Done.")
    calls = [
        {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for name in ("add", "get_weather")
    ]
    results = [{"role": "tool", "tool_call_id": f"call_{name}", "content": "5"} for name in ("get_weather", "add")]
    ask(app, messages=[QUESTION, {"role": "assistant", "tool_calls": calls}, *results], tools=[WEATHER, ADD])
    text = engine_text(task, engine)
    assert "<|tool_call_begin|>functions.add:0<" in text
    assert "<|tool_call_begin|>functions.get_weather:1<" in text
    assert "functions.get_weather:15" in text  # id and content of the result
    assert "call_" not in text.replace("tool_call_", "")


# --- required calls


def grammar(*calls: tuple[str, dict[str, Any]]) -> str:
    return json.dumps([{"name": name, "parameters": parameters} for name, parameters in calls])


def test_a_required_call_is_enforced_by_a_grammar(task) -> None:
    app, engine = scripted_app(task, lambda _: grammar(("add", {"a": 1}), ("get_weather", {"city": "x"})))
    choice = ask(app, tools=[WEATHER, ADD], tool_choice="required")["choices"][0]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in choice["message"]["tool_calls"]]
    assert calls == [("add", '{"a": 1}'), ("get_weather", '{"city": "x"}')]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    schema = json.loads(engine.asked[0].json_schema)
    names = [one["properties"]["name"]["const"] for one in schema["items"]["anyOf"]]
    assert (schema["type"], schema["minItems"], names) == ("array", 1, ["get_weather", "add"])
    assert schema["$defs"]["0"] == WEATHER["function"]["parameters"]
    assert schema["$defs"]["1"]["properties"] == {"a": {"type": "integer"}}  # a bound is not enforced
    named = {"type": "function", "function": {"name": "add"}}
    ask(app, tools=[WEATHER, ADD], tool_choice=named)
    schema = json.loads(engine.asked[1].json_schema)
    assert (schema["maxItems"], list(schema["$defs"])) == (1, ["1"])


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_only_allowed_tools_are_shown_or_enforced(task) -> None:
    app, engine = scripted_app(task, by_round)
    ask(app, tools=[WEATHER, ADD], tool_choice=allowed("auto", "get_weather"))
    assert "get_weather" in engine_text(task, engine)
    assert '"add"' not in engine_text(task, engine)
    assert engine.asked[0].json_schema is None
    app, engine = scripted_app(task, lambda _: grammar(("add", {"a": 1})))
    ask(app, tools=[WEATHER, ADD], tool_choice=allowed("required", "add"), parallel_tool_calls=False)
    schema = json.loads(engine.asked[0].json_schema)
    assert (schema["maxItems"], list(schema["$defs"])) == (1, ["1"])
    assert '"get_weather"' in engine_text(task, engine)  # the same prompt whatever is allowed, for caches
    body = {"model": "m", "messages": [QUESTION], "tools": [ADD], "tool_choice": allowed("auto", "none")}
    response = send(app, "POST", "/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tool_choice")


def test_a_required_call_of_a_strict_function_needs_an_enforceable_schema(task) -> None:
    app, _ = scripted_app(task, by_round)
    strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
    body = {"model": "m", "messages": [QUESTION], "tools": [WEATHER, strict], "tool_choice": "required"}
    response = send(app, "POST", "/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_json_schema")
    assert error["param"] == "tools[1].function.parameters"
    assert ask(app, tools=[strict])["choices"]  # without a grammar, nothing is enforced


def test_an_answer_with_a_schema_may_be_calls_instead(task) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    for said, content, count in (('{"b": 1}', '{"b": 1}', 0), (grammar(("add", {"a": 1})), None, 1)):
        app, engine = scripted_app(task, lambda _, said=said: said)
        message = ask(app, tools=[ADD], response_format=response_format)["choices"][0]["message"]
        assert (message["content"], len(message.get("tool_calls", ()))) == (content, count)
        either = json.loads(engine.asked[0].json_schema)
        assert [one.get("type", "object") for one in either["anyOf"]] == ["object", "array"]


# --- messages


def test_messages_of_popular_clients_are_taken(task) -> None:
    """Fields that OpenRouter, LiteLLM, vLLM and the SDKs add to the messages of an earlier answer."""
    app, engine = scripted_app(task, by_round)
    call = {"id": "call_1", "index": 0, "type": "function", "function": {"name": "add", "arguments": ""}}
    noise = {"refusal": None, "audio": None, "function_call": None, "annotations": [], "reasoning": None, "id": "msg_1"}
    cached = {"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": [cached], "name": None},
        {"role": "assistant", "content": None, **noise},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call], **noise},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "5"}], "name": "add"},
    ]
    tools = [{**ADD, "cache_control": {"type": "ephemeral"}}]
    ask(app, messages=messages, tools=tools)
    assert '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>' in engine_text(task, engine)
