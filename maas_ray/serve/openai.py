"""OpenAI's API for text: what a request may hold, and how answers, streams and errors look.

A parameter that would change the answer and is not supported is refused by name unless it says what
would happen anyway; nothing is silently ignored but what cannot matter. Knows nothing of Serve.
"""

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from maas_ray.bodies import Body
from maas_ray.errors import RequestError
from maas_ray.serve.text import Delta, TextRequest
from maas_ray.serve.wording import wording

DEFAULT_COMPLETION_TOKENS = 16

# Values that change nothing here; any other is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
}
# What no answer depends on.
_HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "prediction",
}


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class ContentPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it; they know a developer's words as the system's."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


_Stop = Annotated[str, StringConstraints(min_length=1)]


def _also_taken(schema: dict[str, Any]) -> None:
    """Puts what is taken though no field holds it into a body's JSON schema."""
    others: dict[str, Any] = {name: {"enum": [None, *values]} for name, values in _NEUTRAL.items()}
    others |= {name: {"description": "No answer depends on it."} for name in sorted(_HARMLESS)}
    schema["properties"] = others | schema["properties"]


class _TextBody(Body):
    model_config = ConfigDict(json_schema_extra=_also_taken)

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in _NEUTRAL:
                if value is not None and not any(type(value) is type(n) and value == n for n in _neutral(name)):
                    raise PydanticCustomError(
                        "unsupported_parameter",
                        "'{name}' is not supported by this server; leave it out.",
                        {"name": name},
                    )
            elif name not in _HARMLESS:
                raise PydanticCustomError("unknown_parameter", "Unknown parameter: '{name}'.", {"name": name})
        return kept

    @model_validator(mode="after")
    def _streams(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid_value", "'{name}' is only allowed with stream: true.", {"name": "stream_options"}
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _request(self, prompt: Any, max_tokens: int | None) -> TextRequest:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return TextRequest(
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=stop,
            seed=self.seed,
        )


class CompletionBody(_TextBody):
    """`POST /v1/completions`"""

    prompt: str | list[str] | list[int] | list[list[int]] = ""

    @model_validator(mode="after")
    def _one_prompt(self) -> Any:
        if isinstance(self.prompt, list) and not isinstance((self.prompt or [""])[0], int) and len(self.prompt) != 1:
            raise PydanticCustomError(
                "unsupported_value", "'{name}' must be one prompt; send a request for each.", {"name": "prompt"}
            )
        return self

    def request(self) -> TextRequest:
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            prompt = prompt[0]
        tokens = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        return self._request(prompt, tokens)


class ChatBody(_TextBody):
    """`POST /v1/chat/completions`"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def request(self) -> TextRequest:
        tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._request([message.plain() for message in self.messages], tokens)


_Body = TypeVar("_Body", bound=_TextBody)


def _neutral(name: str) -> tuple[Any, ...]:
    """Neutral values, numbers of either type."""
    return tuple(v for n in _NEUTRAL[name] for v in ((n, float(n)) if type(n) is int else (n,)))


def parse_body(kind: type[_Body], document: Any) -> _Body:
    """A request's body.

    Raises:
        RequestError: names the first parameter that is wrong, as OpenAI's own API does.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise refusal(error) from error


def refusal(error: ValidationError, within: str = "") -> RequestError:
    """What is told of an error in a body, or in the part of one that stands at `within`."""
    details = error.errors(include_url=False, include_input=True)
    # Of a union, the branch that got furthest is the one that was meant.
    detail = max(
        details,
        key=lambda detail: (sum(isinstance(part, int) for part in detail["loc"]), not detail["type"].endswith("_type")),
    )
    kind, context = detail["type"], detail.get("ctx", {})
    if "name" in context:
        return RequestError(detail["msg"], param=context["name"], code=kind)
    param = ".".join(part for part in (within, _param(detail["loc"])) if part)
    alternatives = [other["type"] for other in details if _param(other["loc"]) == _param(detail["loc"])]
    codes = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
    code = codes.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    return RequestError(wording(detail, param, alternatives), param=param or None, code=code)


def _param(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`; pydantic puts the names of union branches between."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int"):
            text += f".{part}" if text else part
    return text


# --- answers ---------------------------------------------------------------------------------------


class Answer:
    """Renders one answer, whole or as a stream.

    Args:
        model: public model name.
        fingerprint: identifies what would answer the same way again.
        chat: the chat API's shapes; else the completions API's.
    """

    def __init__(self, model: str, fingerprint: str, *, chat: bool) -> None:
        self._chat = chat
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"fp_{fingerprint[:12]}",
        }

    def whole(self, answer: Delta) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        content: dict[str, Any] = {"text": answer.text}
        if self._chat:
            content = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": answer.finish_reason}
        return {**self._head, "choices": [choice], "usage": _usage(answer)}

    async def stream(
        self, first: Delta, rest: AsyncGenerator[Delta, None], *, include_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """Server-sent events. An error on the way is the last event; then there is no `[DONE]`."""
        head = {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}
        if include_usage:
            head["usage"] = None  # as OpenAI does, in every chunk but the last
        last = first
        try:
            async with aclosing(rest):
                if self._chat:
                    yield _event({**head, "choices": [self._choice({"role": "assistant", "content": ""}, None)]})
                if first.text:
                    yield self._piece(head, first.text)
                async for last in rest:
                    if last.text:
                        yield self._piece(head, last.text)
        except RequestError as error:
            yield _event(error_shape(error))
            return
        yield _event({**head, "choices": [self._choice({} if self._chat else "", last.finish_reason)]})
        if include_usage:
            yield _event({**head, "choices": [], "usage": _usage(last)})
        yield b"data: [DONE]\n\n"

    def _piece(self, head: dict[str, Any], text: str) -> bytes:
        return _event({**head, "choices": [self._choice({"content": text} if self._chat else text, None)]})

    def _choice(self, content: dict[str, str] | str, finish_reason: str | None) -> dict[str, Any]:
        key = "delta" if self._chat else "text"
        return {"index": 0, key: content, "logprobs": None, "finish_reason": finish_reason}


def _usage(answer: Delta) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def model_card(name: str, created: int, parent: str | None = None) -> dict[str, Any]:
    """One entry of `/v1/models`; that of an adapter names its base, as vLLM does."""
    card = {"id": name, "object": "model", "created": created, "owned_by": "maas_ray"}
    return card | ({"parent": parent} if parent else {})


def error_shape(error: RequestError) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if error.status >= 500 else kinds.get(error.status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
