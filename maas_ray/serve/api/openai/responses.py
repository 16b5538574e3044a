"""OpenAI's API for text: the bodies of answers, streams and errors. `requests` has the bodies of requests."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from maas_ray.errors import RequestError
from maas_ray.serve.text.types import Delta, TokenLogprob


class Renderer:
    """Renders the answer to a request, complete or as a stream. An answer may have several choices.

    Args:
        model: public model name.
        fingerprint: the same for answers of the same model version.
        chat: use the shapes of the chat API, not of the completions API.
        n: choices for each prompt.
        logprobs: report the log probabilities of each choice's tokens.
    """

    def __init__(self, model: str, fingerprint: str, *, chat: bool, n: int = 1, logprobs: bool = False) -> None:
        self._chat, self._n, self._logprobs = chat, n, logprobs
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
        """Server-sent events. An error during the stream is the last event, without `[DONE]`."""
        head = {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}
        if include_usage:
            head["usage"] = None  # as OpenAI does, in every chunk but the last
        started: set[int] = set()
        last: list[Delta] = []
        delta: Delta | None = first
        try:
            async with aclosing(rest):
                while delta is not None:
                    index = delta.index
                    if self._chat and index not in started:
                        started.add(index)
                        yield _event(
                            {**head, "choices": [self._choice(index, {"role": "assistant", "content": ""}, None)]}
                        )
                    for content, logprobs in self._contents(delta):
                        yield _event({**head, "choices": [self._choice(index, content, None, logprobs)]})
                    if delta.finish_reason is not None:
                        last.append(delta)
                        choice = self._choice(index, {} if self._chat else "", delta.finish_reason)
                        yield _event({**head, "choices": [choice]})
                    delta = await anext(rest, None)
        except RequestError as error:
            yield _event(error_shape(error))
            return
        if include_usage:
            yield _event({**head, "choices": [], "usage": self._usage(last)})
        yield b"data: [DONE]\n\n"

    def _contents(self, delta: Delta) -> Iterator[tuple[dict[str, Any] | str, Sequence[TokenLogprob]]]:
        """The contents of a delta's events, and their log probabilities."""
        if delta.reasoning:
            yield {"reasoning_content": delta.reasoning}, ()
        if delta.text or delta.logprobs:
            yield {"content": delta.text} if self._chat else delta.text, delta.logprobs
        for piece in delta.calls:
            function = {"name": piece.name} if piece.name else {}
            head = {"id": _call_id(), "type": "function"} if piece.name else {}
            yield (
                {
                    "tool_calls": [
                        {"index": piece.index, **head, "function": {**function, "arguments": piece.arguments}}
                    ]
                },
                (),
            )

    def _choice(
        self,
        index: int,
        content: dict[str, Any] | str,
        finish_reason: str | None,
        logprobs: Sequence[TokenLogprob] = (),
    ) -> dict[str, Any]:
        key = "delta" if self._chat else "text"
        rendered = self._rendered(logprobs) if logprobs else None
        return {"index": index, key: content, "logprobs": rendered, "finish_reason": finish_reason}

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


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def model_card(name: str, created: int, parent: str | None = None) -> dict[str, Any]:
    """One entry of `/v1/models`. The entry of an adapter names its base, as in vLLM."""
    card = {"id": name, "object": "model", "created": created, "owned_by": "maas_ray"}
    return card | ({"parent": parent} if parent else {})


def error_shape(error: RequestError) -> dict[str, Any]:
    """An error in the shape that OpenAI's clients expect."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if error.status >= 500 else kinds.get(error.status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
