"""Mistakes in requests of OpenAI's API are refused with its codes, in its words."""

import pytest

from tests.support.echo import CALL, SCHEMA, TOOL, Call, chat, complete, say

SCHEMA_PARAM, CALL_PARAM = "response_format.json_schema.schema", "messages[0].tool_calls[0]"
MISSING = "missing_required_parameter"


UNSUPPORTED = {
    "functions": [{}],
    "modalities": ["audio"],
    "reasoning_effort": "high",
}


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED.items())
def test_unsupported_parameters_of_a_chat_are_refused_by_name(call: Call, name: str, value) -> None:
    response = chat(call, **{name: value})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter")


def test_alternatives_to_the_chosen_tokens_are_refused(call: Call) -> None:
    error = chat(call, logprobs=True, top_logprobs=3).json()["error"]
    assert (error["param"], error["code"]) == ("top_logprobs", "unsupported_parameter")


@pytest.mark.parametrize(("name", "value"), {"logprobs": 2, "best_of": 3, "echo": True, "suffix": "x"}.items())
def test_unsupported_parameters_of_a_completion_are_refused_by_name(call: Call, name: str, value) -> None:
    error = complete(call, n=2, **{name: value}).json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": -1e-45}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["a"] * 65}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"max_tokenz": 5}, "max_tokenz", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [say(5)]}, "messages[0].content", "invalid_type"),
        ({"messages": [say("x", role="robot")]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [say("x"), say([{"type": "image_url"}])]}, "messages[1].content[0].type", "invalid_value"),
        ({"model": 5}, "model", "invalid_type"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"presence_penalty": "1"}, "presence_penalty", "invalid_type"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"²": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": [5]}, "logit_bias", "invalid_type"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "text", "json_schema": SCHEMA}}, "response_format.json_schema", "invalid_value"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, SCHEMA_PARAM, MISSING),
        ({"tools": [{"type": "function"}]}, "tools[0].function", MISSING),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "invalid_value"),
        ({"messages": [say(None, "assistant", tool_calls=[CALL | {"id": 5}])]}, f"{CALL_PARAM}.id", "invalid_type"),
        (
            {"messages": [say(None, "assistant", tool_calls=[CALL | {"function": {"name": "f", "arguments": "["}}])]},
            f"{CALL_PARAM}.function.arguments",
            "invalid_value",
        ),
        ({"messages": [say("x", refusal="no")]}, "messages[0].refusal", "unknown_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [TOOL]},
            "tool_choice",
            "invalid_value",
        ),
        ({"tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "invalid_value"),
        ({"model": None}, "model", "invalid_type"),
    ],
)
def test_a_wrong_field_is_named_with_a_code(call: Call, changes: dict, param: str, code: str) -> None:
    response = chat(call, **changes)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": "5"}, "Invalid type for 'max_tokens': expected an integer, but got a string instead."),
        ({"max_tokens": 1.5}, "Invalid type for 'max_tokens': expected an integer, but got a number instead."),
        ({"temperature": True}, "Invalid type for 'temperature': expected a number, but got a boolean instead."),
        ({"stream": []}, "Invalid type for 'stream': expected a boolean, but got an array instead."),
        ({"stop": 5}, "Invalid type for 'stop': expected a string or an array, but got an integer instead."),
        ({"stop": [1]}, "Invalid type for 'stop[0]': expected a string, but got an integer instead."),
        ({"messages": ["hi"]}, "Invalid type for 'messages[0]': expected an object, but got a string instead."),
        (
            {"messages": [say(None)]},
            "Invalid type for 'messages[0].content': expected a string or an array, but got null ",
        ),
        (
            {"max_tokens": 0},
            "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead.",
        ),
        (
            {"temperature": 2.1},
            "Invalid 'temperature': number above maximum value. Expected a value <= 2, but got 2.1 ",
        ),
        ({"seed": 2**63}, f"Invalid 'seed': integer above maximum value. Expected a value < {2**63}, but got "),
        (
            {"stop": ["a"] * 65},
            "Invalid 'stop': array too long. Expected an array with maximum length 64, but got one ",
        ),
        (
            {"messages": []},
            "Invalid 'messages': array too short. Expected an array with minimum length 1, but got one ",
        ),
        (
            {"messages": [say("x", role="robot")]},
            "Invalid value for 'messages[0].role': \"robot\". Supported values are: 'system', 'developer', 'user', ",
        ),
        ({"messages": [{"role": "user"}]}, "Missing required parameter: 'messages[0].content'."),
        ({"max_tokenz": 5}, "Unknown parameter: 'max_tokenz'."),
        ({"functions": [{}]}, "'functions' is not supported at this path"),
        (
            {"messages": [say("x"), say("y", role="tool")]},
            "Missing required parameter: 'messages[1].tool_call_id'.",
        ),
        (
            {"messages": [say("x", tool_call_id="1")]},
            "'messages[0].tool_call_id' is only allowed in a message of role 'tool'.",
        ),
        ({"response_format": {"type": "json_schema"}}, "Missing required parameter: 'response_format.json_schema'."),
        ({"logit_bias": {"x": 1}}, "Invalid 'logit_bias': "),
    ],
)
def test_a_wrong_field_is_told_in_openais_words(call: Call, changes: dict, message: str) -> None:
    assert chat(call, **changes).json()["error"]["message"].startswith(message)


def test_wrong_prompts_are_refused(call: Call) -> None:
    for prompt in (5, [], [[]] * 33, [1, "a"], ["a", 1], [["a"]], {"a": 1}):
        response = complete(call, prompt=prompt)
        assert response.status_code == 400, prompt
        assert response.json()["error"]["param"].startswith("prompt")


def test_missing_and_unknown_models_have_openais_codes(call: Call) -> None:
    missing = call("POST", "/v1/completions", json={"prompt": "x"})
    assert missing.json()["error"]["code"] == "missing_required_parameter"
    for unknown in (complete(call, model="nope"), call("GET", "/v1/models/nope")):
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == "model_not_found"
    other = complete(call, model="sums")
    assert other.status_code == 400
    assert "/v1/models/sums/predict" in other.json()["error"]["message"]
