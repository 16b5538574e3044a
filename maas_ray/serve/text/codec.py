"""Between text and tokens: a request's prompt to ids, and ids to text that can be sent as it grows.

Works with the bundle's fitted task, so a prompt is tokenised as the training text was. Knows nothing of
HTTP, engines or Serve; `tokenizers` is all it needs (and Jinja, for chats).
"""

import hashlib
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from maas_ray.errors import PromptTooLongError, RequestError
from maas_ray.serve.text import json_schema
from maas_ray.serve.text.types import GenerateRequest, TextRequest

if TYPE_CHECKING:
    import tokenizers

    from maas_ray.tasks.text.generation import TextGeneration

_UNFINISHED = "\ufffd"
_ALWAYS_SUPPORTED = {"temperature", "top_p"}


class TextCodec:
    """Prompts to ids for one bundle.

    Args:
        task: the bundle's task.
        context: longest sequence of the model, tokens.
        end_ids: tokens that end an answer.
        supports: parameters that the engine honours, see `Engine`; requests that need others are refused.
    """

    def __init__(
        self,
        task: "TextGeneration",
        context: int,
        end_ids: tuple[int, ...],
        supports: frozenset[str] = frozenset(),
    ) -> None:
        self.task, self.context, self.supports = task, context, supports
        self.end_ids = tuple(sorted({*end_ids, task.end_of_text_id}))

    def prepare(self, request: TextRequest) -> list[GenerateRequest]:
        """What to ask of the engine, one for each answer: `n` for the first prompt, then for the next.

        Raises:
            RequestError: a prompt is not one that this model can take, or the engine cannot do what is asked.
        """
        self._check_supported(request)
        highest = max((token for token, _ in request.sampling.logit_bias), default=0)
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
                    sampling=request.sampling,
                    seed=_seed(seed, number),
                    end_ids=self.end_ids,
                    json_schema=schema,
                    adapter=request.adapter,
                )
                for number in range(request.n)
            ]
        return prepared

    def _check_supported(self, request: TextRequest) -> None:
        needed = {name: name for name in request.sampling.changed()}
        if request.json_schema is not None:
            needed["json_schema"] = "response_format"
        for name, param in needed.items():
            if name not in _ALWAYS_SUPPORTED | self.supports:
                raise RequestError(
                    f"'{param}' is not supported by the engine that serves this model. Leave it out.",
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
