"""Requests to a generating model and their answers: as text, which APIs speak, and as tokens, which engines speak.

Knows nothing of HTTP, tokenizers, engines or Serve.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

_MIN_TEMPERATURE = 1e-30  # dividing a score by less could exceed the largest float32
_MIN_TOP_P = 2.0**-126  # the smallest normal float32

# --- both levels -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplingParams:
    """How each token of an answer is chosen, and what is reported of it.

    This is the only list of these parameters. APIs fill it from fields of the same names (`of`), `TextCodec` refuses
    those that the model's engine does not support, and `engines.parameters` translates them for each engine. Engines
    compute in float32, so values that are positive in a request and 0 there are replaced here.

    Args:
        temperature: 0 takes the likeliest token each time; higher is more varied.
        top_p: sample among the likeliest tokens whose probabilities sum to this, at most 1. 0: the likeliest one.
        frequency_penalty: subtracted from a token's score for each time that the answer already contains it.
        presence_penalty: subtracted from a token's score once the answer contains it.
        logprobs: report each token's log probability, as the model gave it before any other parameter changed it.
        logit_bias: added to the scores of tokens, by token id.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < _MIN_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)
        object.__setattr__(self, "top_p", max(self.top_p, _MIN_TOP_P))

    @classmethod
    def of(cls, source: object, **others: Any) -> Self:
        """Parameters from fields of the same names. A field that is missing or None keeps its default.

        Args:
            source: a request body or a row.
            others: take precedence over the fields of `source`.
        """
        given = {field.name: getattr(source, field.name, None) for field in fields(cls)} | others
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def greedy(self) -> bool:
        """True if the likeliest token is taken each time."""
        return self.temperature == 0

    def changed(self) -> list[str]:
        """The names of the parameters that differ from their defaults."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: its bundle, and the digest that the bundle must have."""

    uri: str
    digest: str


# --- text ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextRequest:
    """A request in the terms that all APIs share.

    Args:
        prompt: text, or token ids, or the messages of a chat, in the form of `tasks.text.messages`.
        max_tokens: maximum number of new tokens; 0 gets an empty answer. None: as many as fit into the context.
        sampling: how tokens are chosen.
        stop: strings that end the answer and are not part of it.
        seed: the same request with the same seed gets the same answer. None: a new seed for each request.
        adapter: answers in place of the model itself. Set by the route, never by the client.
        n: answers to each prompt.
        more_prompts: further prompts, each answered as if it were the only one.
        json_schema: the answer is a JSON document of this schema.
        tools: functions that the model may want to call, in the form that the chat template shows to it.
        required_tools: names of tools, one of which the answer must call.
        strict_tools: names of tools whose arguments must follow every keyword of their schema, if a call is required.
        parallel_tool_calls: the answer may have several calls.
    """

    prompt: str | list[int] | list[dict[str, Any]]
    max_tokens: int | None
    sampling: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()
    seed: int | None = None
    adapter: Adapter | None = None
    n: int = 1
    more_prompts: tuple[str | list[int], ...] = ()
    json_schema: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    required_tools: tuple[str, ...] = ()
    strict_tools: tuple[str, ...] = ()
    parallel_tool_calls: bool = True

    @property
    def is_chat(self) -> bool:
        return isinstance(self.prompt, list) and bool(self.prompt) and isinstance(self.prompt[0], dict)

    @property
    def param(self) -> str:
        """The field that the prompt came in, for error messages."""
        return "messages" if self.is_chat else "prompt"


class TokenLogprob(NamedTuple):
    """A token of an answer: its text, its bytes, its log probability, and the position in the answer of its text."""

    token: str
    spelled: bytes
    logprob: float
    offset: int


@dataclass(frozen=True)
class CallPiece:
    """A piece of a tool call: which one of the answer's, the function's name in the first piece, and JSON text."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer.

    Args:
        text: the piece.
        finish_reason: `stop`, `length` or `tool_calls` in the last piece.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens of the answer so far.
        index: which of the request's answers; those to the first prompt come first.
        logprobs: of the tokens that begin in this piece, if requested.
        reasoning: text that the model wrote before its answer.
        calls: pieces of tool calls.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()


# --- tokens ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GenerateRequest:
    """One sequence to continue.

    Args:
        prompt_ids: at least one token.
        max_tokens: stop after this many new tokens.
        seed: the same request with the same seed gets the same tokens.
        end_ids: stop after any of these tokens.
        sampling: how tokens are chosen.
        adapter: added to the model for this sequence. None: the model itself.
        json_schema: the answer is a JSON document of this schema, which has passed `json_schema.check`.
        schema_param: the field that the schema came in, for error messages.
    """

    prompt_ids: list[int]
    max_tokens: int
    seed: int
    end_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    adapter: Adapter | None = None
    json_schema: str | None = None
    schema_param: str = "response_format"


class Tokens(NamedTuple):
    """New tokens of one request: their ids and, if requested, their log probabilities."""

    ids: list[int]
    logprobs: list[float] = []
