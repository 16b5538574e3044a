"""Answers as they grow: an engine's tokens to pieces of text, of one answer or of several at once.

Knows engines by their protocol, and nothing of Serve or of any API.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from maas_ray.serve.text.codec import Detokenizer, StopStrings
from maas_ray.serve.text.types import Delta, GenerateRequest, TokenLogprob, Tokens

if TYPE_CHECKING:
    import tokenizers

_LEAST_LOGPROB = -9999.0  # what OpenAI's API says for a probability of 0; JSON has no word for minus infinity


class Growing:
    """One answer.

    Args:
        tokenizer: of the model.
        asked: what was asked of the engine.
        stop: strings that end the answer.
        index: which of the request's answers it is.
    """

    def __init__(
        self, tokenizer: "tokenizers.Tokenizer", asked: GenerateRequest, stop: tuple[str, ...], index: int = 0
    ) -> None:
        self._text, self._stops = Detokenizer(tokenizer), StopStrings(stop)
        self._asked, self._index, self._count = asked, index, 0
        self._spelling = Spelling(tokenizer) if asked.sampling.logprobs else None
        self._certain = self._given = 0  # characters decoded, and given out
        self._held: list[TokenLogprob] = []

    def push(self, tokens: Tokens) -> Delta | None:
        """Take further tokens; what can be given out of them. Not to be called after an end."""
        piece, reason, stopped = "", None, False
        for place, token in enumerate(tokens.ids):  # one by one: how many came together must not show in the count
            self._count += 1
            ended = token in self._asked.end_ids
            new = self._text.push([token])
            if self._spelling is not None and not ended:
                self._held.append(self._spelling.logprob(token, tokens.logprobs[place], self._certain))
                self._certain += len(new)
            more, stopped = self._stops.push(new)
            piece += more
            if stopped or ended or self._count >= self._asked.max_tokens:
                if not stopped:
                    rest, stopped = self._stops.push(self._text.flush())
                    piece += rest + ("" if stopped else self._stops.flush())
                reason = "stop" if stopped or ended else "length"
                break
        self._given += len(piece)
        logprobs = self._ripe(all_of_them=reason is not None and not stopped) if self._held else ()
        if not piece and not logprobs and reason is None:
            return None
        return Delta(piece, reason, len(self._asked.prompt_ids), self._count, self._index, logprobs)

    def _ripe(self, *, all_of_them: bool) -> tuple[TokenLogprob, ...]:
        """Those of the tokens that have given out their text, or have begun to."""
        count = sum(one.offset < self._given for one in self._held)
        ripe, self._held = (self._held, []) if all_of_them else (self._held[:count], self._held[count:])
        return tuple(ripe)


class Spelling:
    """What single tokens spell, in bytes: a character may span several."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._byte_level = "ByteLevel" in repr(tokenizer.decoder)
        self._added = {token: added.content for token, added in tokenizer.get_added_tokens_decoder().items()}

    def logprob(self, token: int, logprob: float, offset: int) -> TokenLogprob:
        """A token's entry; `offset` is where its text begins in the answer."""
        spelled = self.bytes_of(token)
        return TokenLogprob(spelled.decode(errors="replace"), spelled, max(logprob, _LEAST_LOGPROB), offset)

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token) or ""
        if self._byte_level:
            return bytes(_BYTES[character] for character in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()


def _byte_characters() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes (GPT-2): visible ones are themselves."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTES = _byte_characters()


async def grow(stream: AsyncGenerator[Tokens, None], growing: Growing) -> AsyncGenerator[Delta, None]:
    """One answer, from its engine's tokens. Closing it stops the engine's work on it."""
    async with aclosing(stream):
        async for tokens in stream:
            delta = growing.push(tokens)
            if delta is not None:
                yield delta
                if delta.finish_reason is not None:
                    return


async def together(answers: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """Several answers that grow at once; pieces come as they are made. Closing it closes all."""
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
