"""An answer's parts: the reasoning before it, its content, and its tool calls. Knows nothing of any API."""

from collections.abc import Sequence
from dataclasses import dataclass

from maas_ray.serve.text.tool_calls import CallParser, overlap
from maas_ray.serve.text.types import CallPiece


@dataclass(frozen=True)
class Parts:
    """Pieces of an answer's parts."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()


class ReasoningParser:
    """Separates the reasoning at the beginning of an answer from the rest, without the white space around it.

    Args:
        marks: the texts around reasoning.
        begun: the prompt ends with the first mark.
    """

    def __init__(self, marks: tuple[str, str], *, begun: bool) -> None:
        self._start, self._end = marks
        self._buffer = "" if not begun else self._start
        self._reasons: bool | None = None  # not known yet
        self._bare = True  # nothing but white space since the last mark

    def push(self, text: str, *, final: bool = False) -> tuple[str, str]:
        """Add text; returns what has become certain of the reasoning, and of the rest.

        Args:
            text: the next piece of the answer.
            final: nothing follows.
        """
        self._buffer += text
        if self._reasons is None:
            written = self._buffer.lstrip()
            if not final and len(written) < len(self._start) and self._start.startswith(written):
                return "", ""
            self._reasons = self._bare = written.startswith(self._start)
            self._buffer = written.removeprefix(self._start) if self._reasons else self._buffer
        reasoning = ""
        if self._reasons:
            reasoning, end, rest = self._buffer.partition(self._end)
            if not end:
                certain = len(reasoning) - (0 if final else overlap(reasoning, self._end))
                certain = len(reasoning[:certain].rstrip())
                self._buffer = reasoning[certain:]
                return self._stripped(reasoning[:certain]), ""
            reasoning = self._stripped(reasoning.rstrip())
            self._reasons, self._bare, self._buffer = False, True, rest
        rest, self._buffer = self._buffer, ""
        return reasoning, self._stripped(rest)

    def _stripped(self, text: str) -> str:
        text = text.lstrip() if self._bare else text
        self._bare = self._bare and not text
        return text


class AnswerParser:
    """Separates the parts of one answer, as it grows.

    Args:
        reasoning: of a model whose template has reasoning.
        calls: of a request with tools.
        several_calls: the answer may have more than one call.
        tokens: special tokens that the parsers must see.
    """

    def __init__(
        self,
        reasoning: ReasoningParser | None = None,
        calls: CallParser | None = None,
        *,
        several_calls: bool = True,
        tokens: Sequence[str] = (),
    ) -> None:
        self._reasoning, self._calls, self._several = reasoning, calls, several_calls
        self.tokens = frozenset(tokens)

    @property
    def called(self) -> bool:
        """True if the answer has a call."""
        return self._calls is not None and self._calls.calls > 0

    @property
    def may_end(self) -> bool:
        """True if the answer ends with its only call."""
        return self._calls is not None and not self._several

    @property
    def ended(self) -> bool:
        """True if the answer has its only call."""
        return self.called and not self._several

    def push(self, text: str, *, final: bool = False) -> Parts:
        """Add text; returns the pieces that have become certain.

        Args:
            text: the next piece of the answer.
            final: nothing follows.
        """
        reasoning = ""
        if self._reasoning is not None:
            reasoning, text = self._reasoning.push(text, final=final)
        if self._calls is None:
            return Parts(text, reasoning)
        pieces = self._calls.push(text, final=final)
        calls = tuple(piece for piece in pieces if isinstance(piece, CallPiece))
        if not self._several:
            calls = tuple(call for call in calls if call.index == 0)
        return Parts("".join(piece for piece in pieces if isinstance(piece, str)), reasoning, calls)
