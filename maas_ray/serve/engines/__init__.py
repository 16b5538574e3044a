"""Text generation engines: token ids in, a stream of token ids out.

An engine knows nothing of text, HTTP or Serve. All requests in flight share its batch; each is computed
as if it were alone: neither its neighbours nor their arrival change its tokens.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Ability = Literal["penalties", "logprobs", "logit_bias", "json_schema"]
"""What an engine may be able to do beside sampling: each is a field of `GenerateRequest`, or two."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: its bundle, and what that must hold."""

    uri: str
    digest: str


@dataclass(frozen=True)
class GenerateRequest:
    """One sequence to continue.

    Args:
        prompt_ids: at least one token.
        max_tokens: stop after so many new tokens.
        temperature: 0 takes the likeliest token each time.
        top_p: sample among the likeliest tokens whose probabilities sum to this, in (0, 1].
        seed: the same request with the same seed gives the same tokens.
        end_ids: stop after any of these tokens.
        adapter: added to the model for this sequence. None: the model itself.
        frequency_penalty: taken off a token's score for each time that the answer already holds it.
        presence_penalty: taken off a token's score once the answer holds it.
        logprobs: give each new token's log probability, as the model has it before any field above changes it.
        logit_bias: added to tokens' scores, by token id.
        json_schema: the answer is a JSON document of this schema, which `json_schema.check` has passed.
    """

    prompt_ids: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    end_ids: tuple[int, ...]
    adapter: Adapter | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    json_schema: str | None = None


class Tokens(NamedTuple):
    """New tokens of one request: their ids, and where asked their log probabilities."""

    ids: list[int]
    logprobs: list[float] = []


class Engine(Protocol):
    """Continuous batching over one model.

    Args:
        abilities: which fields of a request that not every engine knows it honours; it is given no others.
    """

    abilities: frozenset[Ability]

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        """New tokens, in order, some at a time; the last may be one of `end_ids`. Closing it cancels.

        Raises:
            DeploymentError: the engine has died.
        """

    def check(self) -> None:
        """Return if the engine can work.

        Raises:
            DeploymentError: it has died; says of what.
        """

    def close(self) -> None:
        """Stop working and free the model's memory."""
