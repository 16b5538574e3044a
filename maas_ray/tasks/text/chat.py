"""Chats as one text, rendered by the tokenizer's own template in training and in serving."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from maas_ray.errors import RequestError
from maas_ray.tasks.text.messages import Message
from maas_ray.tasks.text.tokenization import TEMPLATES, special_tokens

if TYPE_CHECKING:
    import tokenizers

# A model trained on plain text does not know roles. Its "chat" is the contents, one after the other.
PLAIN = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
START, END = "<|im_start|>", "<|im_end|>"
# ChatML (OpenAI 2023, "Chat Markup Language"). The last turn ends with the token that ends an answer.
# Tools and calls are JSON, as in Hermes and Qwen.
MARKED = (
    "{% if tools %}{{ '<|im_start|>tools\\n' }}{% for tool in tools %}{{ (tool | tojson) + '\\n' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{% if message['content'] or not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<tool_call>\\n' + (call['function'] | tojson) + '\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>' }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ChatTemplate:
    """A tokenizer's chat template, rendered by Transformers in its sandbox.

    Args:
        templates: one template, or several by name: `default`, and `tool_use` for chats with tools.
        special_tokens: tokens by the names that templates use.
    """

    def __init__(self, templates: str | Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._templates = {"default": templates} if isinstance(templates, str) else dict(templates)
        self._special = dict(special_tokens)

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> "ChatTemplate | None":
        """The template in a tokenizer's files, by name; None if they hold none."""
        written = {"chat_template.jinja": "default"} | {
            name: PurePosixPath(name).stem for name in sorted(files) if name.startswith(f"{TEMPLATES}/")
        }
        templates: Any = {of: files[name].decode("utf-8") for name, of in written.items() if name in files}
        if not templates:
            templates = json.loads(files.get("tokenizer_config.json", b"{}")).get("chat_template")
        if isinstance(templates, list):
            templates = {template["name"]: template["template"] for template in templates}
        return cls(templates, special_tokens(files)) if templates else None

    def whole(self, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        """A finished chat in canonical form, as a model learns it.

        Raises:
            RequestError: as for `render`.
        """
        return self._complete(messages, tools, answer=False)

    def render(self, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        """The messages, in canonical form, as one prompt, ready for the assistant's answer.

        Raises:
            RequestError: the template raises an error, such as for the order of roles, or it omits tools, tool calls
                or tool answers from the prompt.
        """
        return self._complete(messages, tools, answer=True)

    def _complete(self, messages: list[Message], tools: list[dict[str, Any]] | None, *, answer: bool) -> str:
        rendered = self._render(messages, tools, answer=answer)

        def same(messages: list[Message], tools: list[dict[str, Any]] | None) -> bool:
            try:
                return self._render(messages, tools, answer=answer) == rendered
            except RequestError:
                return False

        if tools and same(messages, None):
            raise _unknown_to_template("tools", "tools")
        calls = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
        if calls != messages and same(calls, tools):
            raise _unknown_to_template("messages", "tool calls")
        answers = [message for message in messages if message["role"] != "tool"]
        if answers != messages and same(answers, tools):
            raise _unknown_to_template("messages", "the role 'tool'")
        return rendered

    def _template(self, tools: list[dict[str, Any]] | None) -> str:
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise RequestError(
                f"The model has chat templates for {', '.join(sorted(self._templates))}, but no default one.",
                param="messages",
                code="chat_not_supported",
            )
        return self._templates[name]

    def _render(self, messages: list[Message], tools: list[dict[str, Any]] | None, *, answer: bool = True) -> str:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._template(tools)
        try:
            rendered, _ = render_jinja_template(
                [messages],
                tools=tools or None,
                chat_template=template,
                add_generation_prompt=answer,
                **self._special,
            )
        # A template may add values of types that cannot be added.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
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
