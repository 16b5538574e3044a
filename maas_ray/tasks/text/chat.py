"""Chats as one text, by a tokenizer's own template: the same in training and in serving."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from maas_ray.errors import RequestError

if TYPE_CHECKING:
    import tokenizers

_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")

# A model trained on plain text knows no roles: its "chat" is the contents, one after the other.
PLAIN = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
START, END = "<|im_start|>", "<|im_end|>"
# ChatML (OpenAI 2023, "Chat Markup Language"). The last turn ends with the token that ends an answer.
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def parse_chat(messages: Any) -> dict[str, Any] | None:
    """A chat as JSON, always the same for the same one; None when it is empty."""
    if not messages:
        return None
    if not isinstance(messages, list):
        raise ValueError(f"messages is a {type(messages).__name__}, not a list")
    kept = []
    for place, message in enumerate(messages):
        fields = (
            {key: value for key, value in message.items() if value is not None} if isinstance(message, dict) else {}
        )
        for name in ("role", "content"):
            if not isinstance(fields.get(name), str):
                raise ValueError(f"messages[{place}] has no text as its {name!r}")
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
        """The template in a tokenizer's files by name, or None where there is none."""
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
        """A chat that is over, as a model learns it.

        Raises:
            RequestError: the template refuses it.
        """
        return self._render(messages, None, answer=False)

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The messages as one prompt, ready for the assistant's answer.

        Raises:
            RequestError: the template refuses them, such as for the order of the roles; or it leaves tools, calls
                of tools or what these answered out of the prompt.
        """
        rendered = self._render(messages, tools)
        if tools and self._says(rendered, messages, None):
            raise _unknown_to_template("tools", "tools")
        calls = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
        if calls != messages and self._says(rendered, calls, tools):
            raise _unknown_to_template("messages", "calls of tools")
        answers = [message for message in messages if message["role"] != "tool"]
        if answers != messages and self._says(rendered, answers, tools):
            raise _unknown_to_template("messages", "the role 'tool'")
        return rendered

    def _says(self, rendered: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> bool:
        """Whether the prompt would be the same with these."""
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
                f"The model's chat template refuses these messages: {error}", param="messages", code="invalid_value"
            ) from error
        return str(rendered[0])

    def writes_special_tokens(self, tokenizer: "tokenizers.Tokenizer") -> bool:
        """Whether the template itself writes special tokens around what people say."""
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        try:
            rendered = self.render([{"role": "user", "content": "x"}])
        except RequestError:
            return True
        return any(token in rendered for token in special)


def _unknown_to_template(param: str, what: str) -> RequestError:
    return RequestError(
        f"The model's chat template does not show the model {what}; leave that out.",
        param=param,
        code="unsupported_parameter",
    )
