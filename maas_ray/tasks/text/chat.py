"""Chats as one text, rendered by the tokenizer's own template in training and in serving."""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from maas_ray.errors import InvalidError, RequestError

if TYPE_CHECKING:
    import tokenizers

_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")

# A model trained on plain text does not know roles. Its "chat" is the contents, one after the other.
PLAIN = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
START, END = "<|im_start|>", "<|im_end|>"
# ChatML (OpenAI 2023, "Chat Markup Language"). The last turn ends with the token that ends an answer.
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def parse_chat(messages: Any) -> dict[str, Any] | None:
    """A chat in canonical JSON; None if it is empty.

    Raises:
        InvalidError: it is not a list of messages with a role and a content.
    """
    if not messages:
        return None
    if not isinstance(messages, list):
        raise InvalidError("wrong_type", f"messages is a {type(messages).__name__}, not a list")
    kept = []
    for index, message in enumerate(messages):
        fields = (
            {key: value for key, value in message.items() if value is not None} if isinstance(message, dict) else {}
        )
        for name in ("role", "content"):
            if not isinstance(fields.get(name), str):
                raise InvalidError("wrong_type", f"messages[{index}].{name} must be a string")
        kept.append(fields)
    return {"messages": json.dumps(kept, ensure_ascii=False, sort_keys=True)}


def contents_of(row: dict[str, Any]) -> str:
    """A chat's texts without their roles, to fit a tokenizer on."""
    return "\n".join(message["content"] for message in json.loads(row["messages"]))


class ChatTemplate:
    """A tokenizer's chat template, rendered by Transformers in its sandbox."""

    def __init__(self, template: str, special_tokens: dict[str, str]) -> None:
        self._template, self._special = template, special_tokens

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> "ChatTemplate | None":
        """The template in a tokenizer's files, by name; None if they hold none."""
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
        written = files.get("chat_template.jinja")
        template = config.get("chat_template") if written is None else written.decode("utf-8")
        if not isinstance(template, str):
            return None
        special = {}
        for name in _SPECIAL_NAMES:
            token = config.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if token:
                special[name] = str(token)
        return cls(template, special)

    def whole(self, messages: list[dict[str, Any]]) -> str:
        """A finished chat, as a model learns it.

        Raises:
            RequestError: the template raises an error for it.
        """
        return self._render(messages, None, answer=False)

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The messages as one prompt, ready for the assistant's answer.

        Raises:
            RequestError: the template raises an error, such as for the order of roles, or it omits tools, tool calls
                or tool answers from the prompt.
        """
        rendered = self._render(messages, tools)
        if tools and self._renders(rendered, messages, None):
            raise _unknown_to_template("tools", "tools")
        calls = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
        if calls != messages and self._renders(rendered, calls, tools):
            raise _unknown_to_template("messages", "tool calls")
        answers = [message for message in messages if message["role"] != "tool"]
        if answers != messages and self._renders(rendered, answers, tools):
            raise _unknown_to_template("messages", "the role 'tool'")
        return rendered

    def _renders(self, rendered: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> bool:
        """True if these messages and tools render to the same prompt."""
        try:
            return self._render(messages, tools) == rendered
        except RequestError:
            return False

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, answer: bool = True
    ) -> str:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, _ = render_jinja_template(
                [messages],
                tools=tools or None,
                chat_template=self._template,
                add_generation_prompt=answer,
                **self._special,
            )
        except TemplateError as error:
            raise RequestError(
                f"The model's chat template rejects these messages: {error}", param="messages", code="invalid_value"
            ) from error
        return str(rendered[0])

    @cached_property
    def lead(self) -> str:
        """White space that the template writes before an answer."""
        question, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "answer"}
        try:
            prompt, whole = self._render([question], None), self.whole([question, answer])
        except RequestError:
            return ""
        lead = whole.removeprefix(prompt).partition("answer")[0]
        return lead if whole.startswith(prompt) and lead.isspace() else ""

    def writes_special_tokens(self, tokenizer: "tokenizers.Tokenizer", *, after_answers: bool = True) -> bool:
        """True if the template itself writes special tokens around the contents.

        Args:
            tokenizer: the tokenizer of these tokens.
            after_answers: whether tokens count that it writes around answers alone.
        """
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
        try:
            rendered = self._render(chat[:1], None) + (self._render(chat, None, answer=False) if after_answers else "")
        except RequestError:
            return True
        return any(token in rendered for token in special)


def _unknown_to_template(param: str, part: str) -> RequestError:
    return RequestError(
        f"The model's chat template does not pass {part} to the model; remove them.",
        param=param,
        code="unsupported_parameter",
    )
