"""Chats as tokens. A special token that the template writes is a token; one that a message spells stays text.

Otherwise a message could end its own turn and begin a system's. Transformers and vLLM tokenise a rendered chat as one
text, so they cannot tell the two apart. Here a message's special tokens are replaced before the template sees them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from maas_ray.errors import RequestError
from maas_ray.tasks.text.chat import ChatTemplate
from maas_ray.tasks.text.fast.counting import CountingEncoder, Encoded
from maas_ray.tasks.text.fast.encoder import FastTokenizer, IdEncoder
from maas_ray.tasks.text.messages import Message
from maas_ray.tasks.text.spelling import counted_bytes, special_contents
from maas_ray.tasks.text.tokenization import Files, tokenizer_of

if TYPE_CHECKING:
    import tokenizers

_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # Unicode reserves them for a program's own use
_MARK, *_BRACKETS = _NONCHARACTERS


class Rendered(NamedTuple):
    """A chat as text. If it is marked, marks stand for the special tokens that the template wrote."""

    text: str
    marked: bool


class ChatTokens:
    """Renders and encodes chats.

    Args:
        files: the tokenizer's files.
        template: its chat template.
        after_answers: special tokens that the template writes only around answers count too.
        fast: the same tokenizer in `fastokens`, if it gives the same ids.
        counts: the bytes that tokens stand for follow from its ids, see `CountingEncoder`.
    """

    def __init__(
        self,
        files: Files,
        template: ChatTemplate,
        *,
        after_answers: bool = True,
        fast: FastTokenizer | None = None,
        counts: bool = False,
    ) -> None:
        self._files, self._template = files, template
        self._tokenizer = tokenizer_of(files)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index: token for index, token in added.items() if token.special}
        self._meaning = special_contents(self._tokenizer)  # without the token for unknown text
        # If the template writes none, those in the text were spelled by messages.
        self._parses = template.writes_special_tokens(self._tokenizer, after_answers=after_answers)
        self._tokenizer.encode_special_tokens = not self._parses
        self._id_encoder = IdEncoder(self._tokenizer, fast)
        written = {index: token.content for index, token in self._special.items()} if self._parses else {}
        self._counting_encoder = CountingEncoder(self._tokenizer, fast if counts else None, written)
        self._ids = {token.content: index for index, token in self._special.items()}
        # A plain word, such as `sop`, is left as it is: it could be a role.
        spelled = sorted((one for one in self._ids if not one.isidentifier()), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, spelled)) or r"(?!)")

    def render(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, *, answer: bool, literal: bool = True
    ) -> Rendered:
        """A chat as text.

        Args:
            messages: the messages in canonical form.
            tools: the functions that the template shows.
            answer: the text is a prompt for an answer, not a finished chat.
            literal: special tokens that messages spell stay text.

        Raises:
            RequestError: the template rejects the chat or omits a part of it, or the chat holds characters that
                Unicode reserves.
        """
        write = self._template.render if answer else self._template.whole
        strings = _strings([messages, tools])
        if not self._parses or not literal or not any(map(self._pattern.search, strings)):
            return Rendered(write(messages, tools), marked=False)
        used = {character for text in strings for character in text}
        bracket = next((one for one in _BRACKETS if one not in used), None)
        if _MARK in used or bracket is None:
            raise RequestError(
                "The chat spells a special token and holds the noncharacter U+FDD0. Remove one of them.",
                param="messages",
                code="invalid_value",
            )

        def hidden(text: str) -> str:
            return self._pattern.sub(lambda match: f"{bracket}{self._ids[match[0]]}{bracket}", text)

        text = write(_mapped(messages, hidden), _mapped(tools, hidden))
        text = self._pattern.sub(lambda match: self.mark(match[0]), text)
        shown = re.compile(f"{bracket}([0-9]+){bracket}")
        return Rendered(shown.sub(lambda match: self._special[int(match[1])].content, text), marked=True)

    def mark(self, special: str) -> str:
        """The text that stands for a special token in marked text."""
        return _mark(self._ids[special])

    def encode(self, chats: Sequence[Rendered], *, counted: bool = False) -> list[Encoded]:
        """The tokens of rendered chats.

        Args:
            chats: the chats.
            counted: the bytes that each token stands for are needed.

        Raises:
            RequestError: the tokenizer has no other tokens for a special token that a message spells.
        """
        texts = [chat.text for chat in chats if not chat.marked]
        if counted:
            plain = iter(self._counting_encoder.encode(texts))
        else:
            plain = iter([Encoded(ids, None) for ids in self._id_encoder.encode(texts)])
        return [self._of_marks(chat.text, counted=counted) if chat.marked else next(plain) for chat in chats]

    def encode_request(self, chat: Rendered) -> list[int]:
        """The tokens of a rendered chat, whichever thread it is in; see `encode`."""
        return list(self._of_marks(chat.text).ids) if chat.marked else self._id_encoder.encode_request(chat.text)

    def _of_marks(self, text: str, *, counted: bool = False) -> Encoded:
        tokenizer, ids = self._marking
        [encoding] = tokenizer.encode_batch([text], add_special_tokens=False)  # `encode` would hold Python's lock
        # Unigram finds a spelled-out token in its vocabulary.
        if spelled := next((self._meaning[token] for token in encoding.ids if token in self._meaning), None):
            raise RequestError(
                f"The chat spells {spelled!r}, which the tokenizer cannot encode as text. Remove it.",
                param="messages",
                code="invalid_value",
            )
        tokens = [ids.get(token, token) for token in encoding.ids]
        written = {index: _mark(index) for index in self._special}
        return Encoded(tokens, counted_bytes(text, tokens, encoding.offsets, written) if counted else None)

    @cached_property
    def _marking(self) -> "tuple[tokenizers.Tokenizer, dict[int, int]]":
        """A tokenizer that has tokens for marks in place of special tokens, and the special tokens by its own ids."""
        from tokenizers import AddedToken

        tokenizer = tokenizer_of(self._files)
        tokenizer.encode_special_tokens = True
        marks = {
            index: AddedToken(
                _mark(index),
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=False,
            )
            for index, token in self._special.items()
        }
        tokenizer.add_tokens(list(marks.values()))
        ids = tokenizer.get_vocab(with_added_tokens=True)
        return tokenizer, {ids[mark.content]: index for index, mark in marks.items()}


def _mark(index: int) -> str:
    return f"{_MARK}{index}{_MARK}"


def _strings(value: Any) -> list[str]:
    """All strings in an object, the names of fields included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return _strings([*value.keys(), *value.values()])
    return [text for inner in value for text in _strings(inner)] if isinstance(value, list) else []


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """An object with all its strings changed, the names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _mapped(inner, change) for name, inner in value.items()}
    return [_mapped(inner, change) for inner in value] if isinstance(value, list) else value
