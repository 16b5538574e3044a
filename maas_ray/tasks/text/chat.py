"""Chats as one text, rendered by the tokenizer's own template in training and in serving."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import count
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

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


_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_QUESTION = {"role": "user", "content": "x"}
_FUNCTION: dict[str, Any] = {"name": "find_city", "arguments": {"city": "Rome"}}
_CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call_0123456789abcdefghij", "type": "function", "function": _FUNCTION}],
}


class CallStyle(NamedTuple):
    """The form in which a template wants calls.

    Templates differ in two points that OpenAI's API fixes: arguments are an object, or its JSON text (DeepSeek);
    identifiers are any text, or nine letters and digits (Mistral), or the only place of the function's name, as in
    `functions.find_city:0` (Kimi).
    """

    text_arguments: bool = False
    short_ids: bool = False
    named_ids: bool = False

    def applied(self, messages: list[Message]) -> list[Message]:
        """Messages in canonical form, with their calls in this style."""
        if not any(self):
            return messages
        indices, ids = count(), dict[Any, str]()
        return [self._message(message, indices, ids) for message in messages]

    def _message(self, message: Message, indices: Iterator[int], ids: dict[Any, str]) -> Message:
        """A message. The position of each call is the next of `indices`; `ids` are those of earlier calls, by name."""
        changed = dict(message)
        if "tool_calls" in message:
            changed["tool_calls"] = [self._call(call, next(indices), ids) for call in message["tool_calls"]]
        if "tool_call_id" in message:
            changed["tool_call_id"] = ids.get(message["tool_call_id"], self._short(message["tool_call_id"]))
        return changed

    def _call(self, call: dict[str, Any], index: int, ids: dict[Any, str]) -> dict[str, Any]:
        function, changed = call["function"], dict(call)
        if self.text_arguments:
            changed["function"] = function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        if self.named_ids:
            changed["id"] = ids[call.get("id")] = f"functions.{function['name']}:{index}"
        elif "id" in call:
            changed["id"] = self._short(call["id"])
        return changed

    def _short(self, name: Any) -> Any:
        if not self.short_ids or not isinstance(name, str) or _SHORT_ID.fullmatch(name):
            return name
        return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:9]


_STYLES = (
    CallStyle(),
    CallStyle(text_arguments=True),
    CallStyle(short_ids=True),
    CallStyle(text_arguments=True, short_ids=True),
    CallStyle(named_ids=True),
)


def style_of(render: Callable[[list[Message]], str]) -> CallStyle:
    """The first style in which a template renders all of a call.

    Args:
        render: renders messages, or raises a RequestError.
    """
    fallback = None
    for style in _STYLES:
        try:
            rendered = render(style.applied([_QUESTION, _CALLING]))
        except RequestError:
            continue
        if "{'city'" not in rendered:  # an object as Python writes it
            if _FUNCTION["name"] in rendered:
                return style
            fallback = fallback or style
    return fallback or CallStyle()


_REASONING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


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

    @cached_property
    def _calls(self) -> CallStyle:
        return style_of(lambda messages: self._rendered(messages, None, answer=False))

    def _render(self, messages: list[Message], tools: list[dict[str, Any]] | None, *, answer: bool = True) -> str:
        if any("tool_calls" in message or "tool_call_id" in message for message in messages):
            messages = self._calls.applied(messages)
        return self._rendered(messages, tools, answer=answer)

    def _rendered(self, messages: list[Message], tools: list[dict[str, Any]] | None, *, answer: bool) -> str:
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
    def reasoning(self) -> tuple[str, str] | None:
        """The texts around the reasoning that the model writes before an answer. None: the template knows of none."""
        sources = self._templates.values()
        return next((marks for marks in _REASONING if any(marks[1] in source for source in sources)), None)

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
