"""OpenAI's API for text: the bodies of answers, streams and errors. `requests` has the bodies of requests."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from maas_ray.errors import RequestError
from maas_ray.serve.api.refusals import MAX_ERROR
from maas_ray.serve.text.types import Delta, TokenLogprob


class Renderer:
    """Renders the answer to a request, complete or as a stream. An answer may have several choices.

    Args:
        model: public model name.
        fingerprint: the same for answers of the same model version.
        chat: use the shapes of the chat API, not of the completions API.
        n: choices for each prompt.
        prompts: number of prompts.
        logprobs: report the log probabilities of each choice's tokens.
    """

    def __init__(
        self, model: str, fingerprint: str, *, chat: bool, n: int = 1, prompts: int = 1, logprobs: bool = False
    ) -> None:
        self._chat, self._n, self._answers, self._logprobs = chat, n, n * prompts, logprobs
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"fp_{fingerprint[:12]}",
        }

    def complete(self, answers: Sequence[Delta]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = []
        for answer in answers:
            content = {"message": _message(answer)} if self._chat else {"text": answer.text}
            logprobs = self._rendered(answer.logprobs)
            choices.append(
                {"index": answer.index, **content, "logprobs": logprobs, "finish_reason": answer.finish_reason}
            )
        return {**self._head, "choices": choices, "usage": self._usage(answers)}

    async def stream(
        self, first: Delta, rest: AsyncGenerator[Delta, None], *, include_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """Server-sent events, those of a delta together. An error during the stream is the last one: no `[DONE]`."""
        events = _Events(self._head, chat=self._chat, usage=include_usage)
        started: set[int] = set()
        last: list[Delta] = []
        ready = ""
        delta: Delta | None = first
        try:
            async with aclosing(rest):
                while delta is not None:
                    if self._chat and delta.index not in started:
                        started.add(delta.index)
                        ready += events.piece(delta.index, {"role": "assistant", "content": ""})
                    ready += "".join(self._pieces(delta, events))
                    if delta.finish_reason is not None:
                        last.append(delta)
                        ready += events.piece(delta.index, {} if self._chat else "", delta.finish_reason)
                    if ready and len(last) < self._answers:
                        yield ready.encode()
                        ready = ""  # at the end it waits for what ends the stream
                    delta = await anext(rest, None)
        except RequestError as error:
            yield ready.encode() + error_event(error)
            return
        if include_usage:
            ready += events.usage(self._usage(last))
        yield (ready + "data: [DONE]\n\n").encode()

    def _pieces(self, delta: Delta, events: "_Events") -> Iterator[str]:
        """The events of what a delta says."""
        if delta.reasoning:
            yield events.piece(delta.index, {"reasoning_content": delta.reasoning})
        if delta.logprobs:
            content = {"content": delta.text} if self._chat else delta.text
            yield events.piece(delta.index, content, logprobs=self._rendered(delta.logprobs))
        elif delta.text:
            yield events.text(delta.index, delta.text)
        for piece in delta.calls:
            function = {"name": piece.name} if piece.name else {}
            head = {"id": _call_id(), "type": "function"} if piece.name else {}
            call = {"index": piece.index, **head, "function": {**function, "arguments": piece.arguments}}
            yield events.piece(delta.index, {"tool_calls": [call]})

    def _rendered(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        if self._chat:
            content = [
                {"token": one.token, "logprob": one.logprob, "bytes": list(one.spelled), "top_logprobs": []}
                for one in logprobs
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [one.token for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": None,
            "text_offset": [one.offset for one in logprobs],
        }

    def _usage(self, answers: Sequence[Delta]) -> dict[str, int]:
        """Tokens of the answers, and of each prompt once, however many answers it got."""
        prompt = sum(answer.prompt_tokens for answer in answers if answer.index % self._n == 0)
        completion = sum(answer.completion_tokens for answer in answers)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _message(answer: Delta) -> dict[str, Any]:
    """A complete chat message."""
    calls = [
        {"id": _call_id(), "type": "function", "function": {"name": piece.name, "arguments": piece.arguments}}
        for piece in answer.calls
    ]
    return {
        "role": "assistant",
        "content": answer.text if answer.text or not calls else None,
        "refusal": None,
        **({"reasoning_content": answer.reasoning} if answer.reasoning else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class _Events:
    """The events of one stream. Text, by far the most frequent, is put between prepared beginnings and ends.

    Args:
        head: the members that all answers have.
        chat: see `Renderer`.
        usage: the stream ends with its usage.
    """

    def __init__(self, head: dict[str, Any], *, chat: bool, usage: bool) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        self._head = {**head, "object": kind}
        # OpenAI sends an empty usage in every chunk but the last.
        self._before = f"data: {_json(self._head | ({'usage': None} if usage else {}))[:-1]},"
        self._key = "delta" if chat else "text"
        self._opening, self._closing = ('"delta":{"content":', "}") if chat else ('"text":', "")

    def text(self, index: int, text: str) -> str:
        """An event with a piece of content."""
        content = f"{self._opening}{_json(text)}{self._closing}"
        return f'{self._before}"choices":[{{"index":{index},{content},"logprobs":null,"finish_reason":null}}]}}\n\n'

    def piece(
        self,
        index: int,
        content: dict[str, Any] | str,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> str:
        """An event with a piece of any kind."""
        choice = {"index": index, self._key: content, "logprobs": logprobs, "finish_reason": finish_reason}
        return f'{self._before}"choices":[{_json(choice)}]}}\n\n'

    def usage(self, usage: dict[str, int]) -> str:
        """The event that ends a stream with its usage."""
        return _event({**self._head, "choices": [], "usage": usage})


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _event(document: dict[str, Any]) -> str:
    return f"data: {_json(document)}\n\n"


def error_event(error: RequestError) -> bytes:
    """The last event of a stream that failed."""
    return _event(error_shape(error)).encode()


def model_card(name: str, created: int, parent: str | None = None) -> dict[str, Any]:
    """One entry of `/v1/models`. The entry of an adapter names its base, as in vLLM."""
    card = {"id": name, "object": "model", "created": created, "owned_by": "maas_ray"}
    return card | ({"parent": parent} if parent else {})


def error_shape(error: RequestError) -> dict[str, Any]:
    """An error in the shape that OpenAI's clients expect."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if error.status >= 500 else kinds.get(error.status, "invalid_request_error")
    message, param = error.message[:MAX_ERROR], error.param and error.param[:MAX_ERROR]
    return {"error": {"message": message, "type": kind, "param": param, "code": error.code}}
