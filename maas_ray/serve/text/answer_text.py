"""Token ids to text that can be streamed: what no later token can change, without a lead, until a stop string.

Knows nothing of HTTP, engines or Serve; needs only `tokenizers`.
"""

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tokenizers

    from maas_ray.tasks.text.generation import TextGeneration
    from maas_ray.tasks.text.spelling import Spelling

_UNFINISHED = "\ufffd"
CONTEXT = 8
"""Tokens of the prompt that an answer is decoded after."""


def context_of(prompt_ids: Sequence[int], task: "TextGeneration") -> list[int]:
    """The last tokens of a prompt, as far as the text of an answer depends on them."""
    context: list[int] = []
    for token in reversed(prompt_ids):
        if token in task.special:
            if task.restarts_after_special:
                break
        else:
            context.append(token)
        if len(context) == CONTEXT:
            break
    # Decoders of single bytes replace a whole run of bytes that begins inside a character.
    while context and task.spelling.continues(context[-1]):
        context.pop()
    return context[::-1]


class Detokenizer(Protocol):
    """Token ids to text: after each token, the text that no later token can change."""

    def push(self, ids: Sequence[int]) -> str:
        """Add ids; returns the text that has become certain."""

    def flush(self) -> str:
        """The rest of the text at the end: bytes that never became a character."""


def detokenizer(task: "TextGeneration", context: Sequence[int] = ()) -> Detokenizer:
    """A detokenizer for a text that follows others.

    Args:
        task: the model's task.
        context: the last tokens before the text, see `context_of`.
    """
    if task.spelling.joins:
        return ByteDetokenizer(task.spelling, context)
    return WindowDetokenizer(task.tokenizer, context)


class ByteDetokenizer:
    """A detokenizer of byte-level BPE, whose texts are the bytes of their tokens: no token is decoded twice.

    Args:
        spelling: the tokens' bytes.
        context: the last tokens before the text, see `context_of`.
    """

    def __init__(self, spelling: "Spelling", context: Sequence[int] = ()) -> None:
        self._spelling = spelling
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.push(context)

    def push(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(self._spelling.joined(ids))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """A detokenizer of any tokenizer.

    A character may span several tokens, and some tokenizers decode a token depending on its neighbour. Therefore a
    window of tokens is decoded, which starts where the text is certain, and text that could still change is held back.
    SentencePiece's decoder removes the space before the first word, so an answer is decoded after its prompt.

    Args:
        tokenizer: the model's tokenizer.
        context: the last tokens before the text, see `context_of`.
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer", context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context)
        self._start = 0  # start of the window
        complete = self._complete()
        self._read = complete if complete == len(self._ids) else 0  # end of its certain part
        # Characters of the window's text that were returned, or belong to the context.
        self._sent = max(len(self._decode(0, complete)), len(self._decode(0, len(self._ids)).rstrip(_UNFINISHED)))

    def push(self, ids: Sequence[int]) -> str:
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
        # Apart, since decoders of single bytes would replace the complete characters of the same run too.
        complete = self._complete()
        return (self._decode(self._start, complete) + self._decode(complete, len(self._ids)))[self._sent :]

    def _complete(self) -> int:
        """The end of the window's tokens whose text does not end inside a character."""
        ends = range(len(self._ids), self._start, -1)
        return next((end for end in ends if not self._decode(self._start, end).endswith(_UNFINISHED)), self._start)

    def _decode(self, start: int, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True))


class Lead:
    """Removes a text from the beginning of a streamed text that begins with all of it."""

    def __init__(self, lead: str) -> None:
        self._lead, self._held = lead, ""

    def push(self, text: str) -> str:
        """Add text; returns the text that is not part of the lead."""
        if not self._lead:
            return text
        self._held += text
        if len(self._held) < len(self._lead) and self._lead.startswith(self._held):
            return ""
        held, lead = self._held, self._lead
        self._held = self._lead = ""
        return held.removeprefix(lead)

    def flush(self) -> str:
        """The rest of the text at the end: the beginning of a lead that was not completed."""
        held, self._held, self._lead = self._held, "", ""
        return held


class StopStrings:
    """Ends a streamed text before the first stop string, and never returns the beginning of one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text. Returns the text that may be sent, and True if a stop string was reached."""
        self._held += text
        positions = [position for stop in self._stop if (position := self._held.find(stop)) >= 0]
        if positions:
            return self._held[: min(positions)], True
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out, False

    def flush(self) -> str:
        """The rest of the text at the end: the beginning of a stop string that was not completed."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
