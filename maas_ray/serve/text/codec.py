"""Requests for text to requests for tokens.

It uses the bundle's fitted task, so a prompt is tokenised like the training text. Knows nothing of HTTP, engines or
Serve; needs only `tokenizers` (and Jinja, for chats).
"""

import hashlib
import random
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from maas_ray.errors import PromptTooLongError, RequestError
from maas_ray.serve.text import json_schema
from maas_ray.serve.text.answer_parts import AnswerParser, ReasoningParser
from maas_ray.serve.text.answer_text import CONTEXT
from maas_ray.serve.text.call_formats import FORMATS, GRAMMAR, CallFormat
from maas_ray.serve.text.call_schema import call_schema
from maas_ray.serve.text.tool_calls import CallParser, format_of
from maas_ray.serve.text.types import GenerateRequest, TextRequest

if TYPE_CHECKING:
    from maas_ray.tasks.text.generation import TextGeneration

_ALWAYS_SUPPORTED = {"temperature", "top_p"}


class TextCodec:
    """Requests for text to requests for tokens, for one bundle.

    Args:
        task: the bundle's task.
        context: longest sequence of the model, tokens.
        end_ids: tokens that end an answer.
        supports: parameters that the engine honours, see `Engine`; requests that need others are refused.
        tool_calls: the format of tool calls, see `ServingOptions`.

    Attributes:
        max_characters: most characters of a prompt: as many longest tokens as fit into the context. A longer prompt is
            refused unread, because to tokenise it takes up to a second for a megabyte. A tokenizer that collapses
            spaces could make a shorter prompt of it, so clients should collapse them.
    """

    def __init__(
        self,
        task: "TextGeneration",
        context: int,
        end_ids: tuple[int, ...],
        supports: frozenset[str] = frozenset(),
        tool_calls: str = "auto",
    ) -> None:
        self.task, self.context, self.supports = task, context, supports
        self._tool_calls = tool_calls
        self.end_ids = tuple(sorted({*end_ids, task.end_of_text_id}))
        self.max_characters = context * max(map(len, task.tokenizer.get_vocab(with_added_tokens=True)))

    def prepare(self, request: TextRequest) -> list[GenerateRequest]:
        """The engine's requests, one for each answer: `n` for the first prompt, then `n` for the next.

        Raises:
            RequestError: the model cannot accept a prompt, or the engine does not support a parameter.
        """
        self._check_supported(request)
        highest = max((token for token, _ in request.sampling.logit_bias), default=0)
        if highest >= self.task.vocab_size:
            raise self._outside_vocabulary("logit_bias", highest)
        schema = self._schema(request)
        seed = random.getrandbits(63) if request.seed is None else request.seed
        for prompt in (request.prompt, *request.more_prompts):
            self._check_size(prompt, request)
        prepared = []
        for prompt in (request.prompt, *request.more_prompts):
            ids = self._ids(replace(request, prompt=prompt))
            room = self.context - len(ids)
            wanted = max(room, 1) if request.max_tokens is None else request.max_tokens
            if wanted > room:
                raise PromptTooLongError(len(ids), wanted, self.context, request.param)
            prepared += [
                GenerateRequest(
                    prompt_ids=ids,
                    max_tokens=wanted,
                    sampling=request.sampling,
                    seed=_seed(seed, index),
                    end_ids=self.end_ids,
                    json_schema=schema,
                    schema_param="tools" if request.tools else "response_format",
                    adapter=request.adapter,
                )
                for index in range(request.n)
            ]
        return prepared

    def _check_supported(self, request: TextRequest) -> None:
        needed = {name: name for name in request.sampling.changed()}
        if request.json_schema is not None or request.required_tools:
            needed["json_schema"] = "tool_choice" if request.required_tools else "response_format"
        for name, param in needed.items():
            if name not in _ALWAYS_SUPPORTED | self.supports:
                raise RequestError(
                    f"'{param}' is not supported by the engine that serves this model. Leave it out.",
                    param=param,
                    code="unsupported_parameter",
                )

    def _schema(self, request: TextRequest) -> str | None:
        """The schema that the answer must follow. None: any text."""
        if request.required_tools or (request.tools and request.json_schema is not None):
            return call_schema(
                request.tools,
                request.required_tools or _names(request),
                request.strict_tools,
                several=request.parallel_tool_calls,
                answer=None if request.required_tools else request.json_schema,
            )
        return None if request.json_schema is None else json_schema.check(request.json_schema)

    def _check_calls(self, request: TextRequest) -> None:
        if request.tools and not request.required_tools and self._tool_calls == "auto" and self._format is None:
            raise RequestError(
                "'tools': the chat template writes calls in a format that this server does not know. Deploy the model "
                f"with tool_calls: {', '.join(FORMATS)}; or with tool_calls: none, which leaves calls in the text.",
                param="tools",
                code="unsupported_parameter",
            )

    @cached_property
    def _format(self) -> CallFormat | None:
        """The format of tool calls. None: it is not known, or calls stay text."""
        if self._tool_calls == "auto":
            return format_of(self.task.chat) if self.task.chat is not None else None
        return FORMATS.get(self._tool_calls)

    def parser(self, request: TextRequest, prepared: GenerateRequest, *, streamed: bool) -> AnswerParser:
        """The parser of an answer's parts.

        Args:
            request: the request.
            prepared: the engine's request.
            streamed: calls are sent in pieces.
        """
        if not request.is_chat or self.task.chat is None:
            return AnswerParser()
        tokens: list[str] = []
        reasoning = calls = None
        if (marks := self.task.chat.reasoning) is not None and prepared.json_schema is None:
            prompt = self.task.tokenizer.decode(prepared.prompt_ids[-CONTEXT:], skip_special_tokens=False)
            reasoning = ReasoningParser(marks, begun=prompt.rstrip().endswith(marks[0]))
            tokens += marks
        one = self._format if prepared.json_schema is None else GRAMMAR
        if request.tools and one is not None:
            functions = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in request.tools}
            calls = CallParser(one, functions, streamed=streamed)
            tokens += [*one.marks, *one.tokens]
        return AnswerParser(reasoning, calls, several_calls=request.parallel_tool_calls, tokens=tokens)

    def _check_size(self, prompt: Any, request: TextRequest) -> None:
        """Refuse a prompt that cannot fit, before anything is done with it."""
        if isinstance(prompt, str):
            characters = len(prompt)
        elif request.is_chat:
            if len(prompt) > self.context:
                raise RequestError(
                    f"This model's maximum context length is {self.context} tokens, but there are {len(prompt)} "
                    "messages. Send fewer.",
                    param=request.param,
                    code="context_length_exceeded",
                )
            characters = _characters(prompt, self.max_characters) + _characters(request.tools, self.max_characters)
        elif len(prompt) > self.context:
            raise PromptTooLongError(len(prompt), request.max_tokens or 1, self.context, request.param)
        else:
            return
        if characters > self.max_characters:
            raise RequestError(
                f"This model's maximum context length is {self.context} tokens, which hold at most "
                f"{self.max_characters} characters, but the prompt has more. Shorten it.",
                param=request.param,
                code="context_length_exceeded",
            )

    def _outside_vocabulary(self, param: str, token: int) -> RequestError:
        return RequestError(
            f"'{param}' has the token id {token}, but this model's are 0 to {self.task.vocab_size - 1}.",
            param=param,
            code="invalid_value",
        )

    def _ids(self, request: TextRequest) -> list[int]:
        prompt: Any = request.prompt
        if request.is_chat:
            if self.task.chat is None:
                raise RequestError(
                    "This model does not have a chat template. Use /v1/completions.",
                    param="model",
                    code="chat_not_supported",
                )
            ids = self.task.chat_ids(prompt, list(request.tools))
            self._check_calls(request)
        elif isinstance(prompt, str):
            ids = self.task.prompt_ids(prompt)
        else:
            ids = prompt
            highest, lowest = max(ids, default=0), min(ids, default=0)
            if highest >= self.task.vocab_size or lowest < 0:
                raise self._outside_vocabulary("prompt", lowest if lowest < 0 else highest)
        # In training, each document follows the end of another one. So does an answer to an empty prompt.
        return list(ids) or [self.task.end_of_text_id]

    def lead(self, request: TextRequest) -> str:
        """White space that the chat template writes before an answer, which is not part of it."""
        return self.task.chat.lead if request.is_chat and self.task.chat is not None else ""


def _names(request: TextRequest) -> list[str]:
    """The names of a request's tools."""
    return [tool["function"]["name"] for tool in request.tools]


def _characters(value: Any, most: int) -> int:
    """Characters of all strings in a document, counted until there are more than `most`."""
    total, pending = 0, [value]
    while pending and total <= most:
        inner = pending.pop()
        if isinstance(inner, str):
            total += len(inner)
        elif isinstance(inner, dict):
            pending += inner.values()
        elif isinstance(inner, list | tuple):
            pending += inner
    return total


def _seed(seed: int, index: int) -> int:
    """The seed of one of several answers to a prompt; the first answer gets the request's own seed."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:8]) >> 1
