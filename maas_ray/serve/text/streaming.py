"""Streamed answers: an engine's tokens to pieces of text, for one answer or for several at once.

Knows nothing of engines, Serve or any API.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from maas_ray.serve.text.answer_parts import AnswerParser, Parts
from maas_ray.serve.text.answer_text import Lead, StopStrings, context_of, detokenizer
from maas_ray.serve.text.types import Delta, GenerateRequest, TokenLogprob, Tokens

if TYPE_CHECKING:
    from maas_ray.tasks.text.generation import TextGeneration

_MIN_LOGPROB = -9999.0  # OpenAI's value for a probability of 0, because JSON cannot express minus infinity


class StreamedAnswer:
    """One answer, from its tokens.

    Args:
        task: the model's task.
        request: the engine's request.
        stop: strings that end the answer.
        index: position among the answers to the client's request.
        lead: text that may come before the answer and is not part of it.
        parser: of the answer's parts. None: all of it is content.
    """

    def __init__(
        self,
        task: "TextGeneration",
        request: GenerateRequest,
        stop: tuple[str, ...],
        index: int = 0,
        lead: str = "",
        parser: AnswerParser | None = None,
    ) -> None:
        self._task, self._parser = task, parser or AnswerParser()
        self._text = detokenizer(task, context_of(request.prompt_ids, task))
        self._marks = {token: text for token, text in task.special.items() if text in self._parser.tokens}
        self._lead, self._stops = Lead(lead), StopStrings(stop)
        self._request, self._index, self._count = request, index, 0
        self._spelling = task.spelling
        self._decoded = self._returned = 0  # characters
        self._held: list[TokenLogprob] = []
        # Whatever may end an answer within a group of tokens, or is reported of each, needs them one by one.
        self._together = not (stop or request.sampling.logprobs or self._marks or self._parser.may_end)
        self._ends = frozenset(request.end_ids)

    @property
    def empty(self) -> Delta | None:
        """The whole answer to a request for no tokens. None: tokens are requested."""
        if self._request.max_tokens:
            return None
        return Delta("", "length", len(self._request.prompt_ids), 0, self._index)

    def push(self, tokens: Tokens) -> Delta | None:
        """Add tokens; returns the piece that can be sent, if any. Not to be called after the last piece."""
        parts: list[Parts] = []
        reason, stopped = None, False
        for index, group in enumerate(self._groups(tokens.ids)):  # so that the count does not depend on the pieces
            self._count += len(group)
            token = group[-1]
            ended = token in self._ends
            new = self._lead.push(self._decode(group))
            if self._request.sampling.logprobs and not ended:
                spelled = self._spelling.bytes_of(token) if self._spelling.by_token else new.encode()
                if not self._decoded and not new.startswith(" "):
                    spelled = spelled.removeprefix(b" ")  # a space that the decoder, or the lead, took away
                self._held.append(_logprob(spelled, tokens.logprobs[index], self._decoded))
                self._decoded += len(new)
            more, stopped = self._stops.push(new)
            parts.append(self._parsed(more))
            if self._parser.ended:
                reason = "tool_calls"
                break
            if stopped or ended or self._count >= self._request.max_tokens:
                rest = ""
                if not stopped:
                    rest, stopped = self._stops.push(self._lead.push(self._text.flush()) + self._lead.flush())
                    rest += "" if stopped else self._stops.flush()
                parts.append(self._parsed(rest, final=True))
                reason = ("tool_calls" if self._parser.called else "stop") if stopped or ended else "length"
                break
        logprobs = self._released(everything=reason is not None and not stopped) if self._held else ()
        content, reasoning = "".join(one.content for one in parts), "".join(one.reasoning for one in parts)
        calls = tuple(call for one in parts for call in one.calls)
        if not (content or reasoning or calls or logprobs) and reason is None:
            return None
        read = len(self._request.prompt_ids)
        return Delta(content, reason, read, self._count, self._index, logprobs, reasoning, calls)

    def _groups(self, ids: list[int]) -> Sequence[list[int]]:
        """Tokens that are decoded together; only the last one of a group may end the answer."""
        if not self._together:
            return [[token] for token in ids]
        ids = ids[: self._request.max_tokens - self._count]
        end = next((place for place, token in enumerate(ids, 1) if token in self._ends), len(ids))
        return [ids[:end]] if ids else []

    def _decode(self, group: list[int]) -> str:
        """The text that has become certain. Of the special tokens, it shows those that the parser reads."""
        token = group[-1]
        if token not in self._marks:
            return self._text.push(group)
        before, self._text = self._text.flush(), detokenizer(self._task)
        return before + self._marks[token]

    def _parsed(self, text: str, *, final: bool = False) -> Parts:
        self._returned += len(text)
        return self._parser.push(text, final=final)

    def _released(self, *, everything: bool) -> tuple[TokenLogprob, ...]:
        """Log probabilities of the tokens whose text has been returned, at least in part."""
        count = len(self._held) if everything else sum(token.offset < self._returned for token in self._held)
        released, self._held = self._held[:count], self._held[count:]
        return tuple(released)


def _logprob(spelled: bytes, logprob: float, offset: int) -> TokenLogprob:
    """A token's entry, by its bytes; `offset` is the position of its text in the answer."""
    # In this order, NaN becomes the minimum too.
    return TokenLogprob(spelled.decode(errors="replace"), spelled, max(_MIN_LOGPROB, logprob), offset)


async def stream_answer(tokens: AsyncGenerator[Tokens, None], answer: StreamedAnswer) -> AsyncGenerator[Delta, None]:
    """The pieces of one answer. Closing it cancels the engine's work on the answer."""
    async with aclosing(tokens):
        if answer.empty is not None:
            yield answer.empty
            return
        async for batch in tokens:
            delta = answer.push(batch)
            if delta is not None:
                yield delta
                if delta.finish_reason is not None:
                    return


async def merge_answers(answers: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """The pieces of several concurrent answers, in the order of their arrival. Closing it closes every answer."""
    pieces: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()

    async def follow(answer: AsyncGenerator[Delta, None]) -> None:
        try:
            async with aclosing(answer):
                async for delta in answer:
                    pieces.put_nowait(delta)
            pieces.put_nowait(None)
        except Exception as error:
            pieces.put_nowait(error)

    following = [asyncio.create_task(follow(answer)) for answer in answers]
    try:
        left = len(following)
        while left:
            piece = await pieces.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                left -= 1
            else:
                yield piece
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
