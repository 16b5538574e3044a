#!/usr/bin/env bash
# pydantic-ai 2.68: `run_stream` takes text before a tool call for the final answer, and the call is not answered.
# Expected: the same output as from `run`, which answers the call and lets the model go on.
# Effect: models that say "I look." before they call, as most open ones do, seem to stop there when they are streamed. A
#   server cannot help: the text comes first. Use `run_stream_events`, `iter`, or `run` with an event handler.
# Needs: pydantic-ai-slim==2.68.0
# Seen: run: It is sunny.; run_stream: I look.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
python - <<'PYTHON'
import asyncio
import sys

from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import DeltaToolCall, FunctionModel


def answered(messages):
    return any(part.part_kind == "tool-return" for message in messages for part in message.parts)


def complete(messages, _):
    if answered(messages):
        return ModelResponse([TextPart("It is sunny.")])
    return ModelResponse([TextPart("I look."), ToolCallPart("get_weather", {"city": "Rome"})])


async def stream(messages, _):
    if answered(messages):
        yield "It is sunny."
    else:
        yield "I look."
        yield {1: DeltaToolCall("get_weather", '{"city": "Rome"}')}


agent = Agent(FunctionModel(complete, stream_function=stream))


@agent.tool_plain
def get_weather(city: str) -> str:
    return "sunny"


async def outputs():
    async with agent.run_stream("Weather?") as streamed:
        return (await agent.run("Weather?")).output, await streamed.get_output()


whole, streamed = asyncio.run(outputs())
print(f"run: {whole}; run_stream: {streamed}")
sys.exit((whole, streamed) != ("It is sunny.", "I look."))
PYTHON
