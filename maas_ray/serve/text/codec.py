"""Between text and tokens: a request's prompt to ids, and ids to text that can be sent as it grows.

Works with the bundle's fitted task, so a prompt is tokenised as the training text was. Knows nothing of
HTTP, engines or Serve; `tokenizers` is all it needs (and Jinja, for chats).
"""

import hashlib
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from maas_ray.errors import PromptTooLongError, RequestError
from maas_ray.serve.engines import Ability, Adapter, GenerateRequest
from maas_ray.serve.text import json_schema

if TYPE_CHECKING:
    import tokenizers

    from maas_ray.tasks.text.generation import TextGeneration

_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class TextRequest:
    """What a client asks of a generating model, in the words of any API.

    Args:
        prompt: text, or token ids, or the messages of a chat (`role`, `content`, and of tools' `tool_calls` and
            `tool_call_id`).
        max_tokens: most new tokens. None: as many as fit the context.
        temperature: 0 takes the likeliest token each time.
        top_p: sample among the likeliest tokens whose probabilities sum to this.
        stop: strings that end the answer and are not part of it.
        seed: the same request with the same seed gives the same answer. None: a new one each time.
        adapter: asked in place of the model itself. The route says it, not the client.
        n: answers to each prompt.
        more_prompts: further prompts, each answered as if it were asked alone.
        frequency_penalty, presence_penalty, logprobs: as in `GenerateRequest`.
        logit_bias: added to tokens' scores, by token id.
        json_schema: the answer is a JSON document of this schema.
        tools: functions that the model may want called, as the chat's template is to show them to it.
    """

    prompt: str | list[int] | list[dict[str, Any]]
    max_tokens: int | None
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None
    adapter: Adapter | None = None
    n: int = 1
    more_prompts: tuple[str | list[int], ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    json_schema: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def is_chat(self) -> bool:
        return isinstance(self.prompt, list) and bool(self.prompt) and isinstance(self.prompt[0], dict)

    @property
    def param(self) -> str:
        """The field that the prompt came in, for error messages."""
        return "messages" if self.is_chat else "prompt"


class TokenLogprob(NamedTuple):
    """A token of an answer: its text, its bytes, its log probability, and where in the answer its text begins."""

    token: str
    spelled: bytes
    logprob: float
    offset: int


@dataclass(frozen=True)
class Delta:
    """A further piece of an answer.

    Args:
        text: the piece.
        finish_reason: `stop` or `length` on the last.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens of the answer so far.
        index: which of the request's answers; those to the first prompt come first.
        logprobs: of the tokens that begin in the piece, where asked.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class TextCodec:
    """Prompts to ids for one bundle.

    Args:
        task: the bundle's task.
        context: longest sequence of the model, tokens.
        end_ids: tokens that end an answer.
        abilities: what the engine can do; what else is asked of it is refused.
    """

    def __init__(
        self,
        task: "TextGeneration",
        context: int,
        end_ids: tuple[int, ...],
        abilities: frozenset[Ability] = frozenset(),
    ) -> None:
        self.task, self.context, self.abilities = task, context, abilities
        self.end_ids = tuple(sorted({*end_ids, task.end_of_text_id}))

    def prepare(self, request: TextRequest) -> list[GenerateRequest]:
        """What to ask of the engine, one for each answer: `n` for the first prompt, then for the next.

        Raises:
            RequestError: a prompt is not one that this model can take, or the engine cannot do what is asked.
        """
        self._refuse_what_the_engine_cannot(request)
        highest = max((token for token, _ in request.logit_bias), default=0)
        if highest >= self.task.vocab_size:
            raise self._outside("logit_bias", highest)
        schema = None if request.json_schema is None else json_schema.check(request.json_schema)
        seed = random.getrandbits(63) if request.seed is None else request.seed
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
                    temperature=request.temperature,
                    top_p=request.top_p,
                    seed=_seed(seed, number),
                    end_ids=self.end_ids,
                    frequency_penalty=request.frequency_penalty,
                    presence_penalty=request.presence_penalty,
                    logprobs=request.logprobs,
                    logit_bias=request.logit_bias,
                    json_schema=schema,
                    adapter=request.adapter,
                )
                for number in range(request.n)
            ]
        return prepared

    def _refuse_what_the_engine_cannot(self, request: TextRequest) -> None:
        asked: list[tuple[Ability, str, Any]] = [
            ("penalties", "frequency_penalty", request.frequency_penalty),
            ("penalties", "presence_penalty", request.presence_penalty),
            ("logprobs", "logprobs", request.logprobs),
            ("logit_bias", "logit_bias", request.logit_bias),
            ("json_schema", "response_format", request.json_schema is not None),
        ]
        for ability, param, wanted in asked:
            if wanted and ability not in self.abilities:
                raise RequestError(
                    f"'{param}' is not supported by the engine that serves this model; leave it out.",
                    param=param,
                    code="unsupported_parameter",
                )

    def _outside(self, param: str, token: int) -> RequestError:
        return RequestError(
            f"Token ids of this model are 0 to {self.task.vocab_size - 1}; '{param}' holds {token}.",
            param=param,
            code="invalid_value",
        )

    def _ids(self, request: TextRequest) -> list[int]:
        prompt: Any = request.prompt
        if request.is_chat:
            if self.task.chat is None:
                raise RequestError(
                    "This model has no chat template; use /v1/completions.", param="model", code="chat_not_supported"
                )
            ids = self.task.chat_ids(prompt, list(request.tools))
        elif isinstance(prompt, str):
            ids = self.task.tokenizer.encode(prompt, add_special_tokens=False).ids
        else:
            ids = prompt
            highest, lowest = max(ids, default=0), min(ids, default=0)
            if highest >= self.task.vocab_size or lowest < 0:
                raise self._outside("prompt", lowest if lowest < 0 else highest)
        # In training each document follows the end of another: so does an answer to nothing.
        return list(ids) or [self.task.end_of_text_id]


def _seed(seed: int, number: int) -> int:
    """The seed of an answer among several to one prompt; that of the first is the request's own."""
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8]) >> 1


class Detokenizer:
    """Token ids to text, as much as is certain after each.

    A character may span tokens, and some tokenizers decode a token by its neighbour; so a window that
    starts at the last certain place is decoded, and what could still change is held back.
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._read = 0  # the window's start, and how far its text is certain
        self._sent = 0  # characters of the window's text already given out

    def push(self, ids: list[int]) -> str:
        """Take further ids; the text that has become certain."""
        self._ids += ids
        text = self._decode(self._start, len(self._ids))
        certain = text.rstrip(_UNFINISHED)
        new = certain[self._sent :]
        self._sent = max(self._sent, len(certain))
        if len(certain) == len(text) and new:
            self._start, self._read = self._read, len(self._ids)
            self._sent = len(self._decode(self._start, self._read))
        return new

    def flush(self) -> str:
        """What was held back, at the end: bytes that never became a character."""
        return self._decode(self._start, len(self._ids))[self._sent :]

    def _decode(self, start: int, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True))


class StopStrings:
    """Ends a growing text before any of some strings, never giving out the beginning of one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take further text. Returns what may be given out, and whether a stop string was met."""
        self._held += text
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            return self._held[: min(places)], True
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out, False

    def flush(self) -> str:
        """What was held back, at the end: the beginning of a stop string that did not come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, but for all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
