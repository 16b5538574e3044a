"""OpenAI's API for text: the bodies of requests. `responses` has the bodies of answers.

An unsupported parameter that would change the answer is refused by name, unless its value changes nothing. Only
parameters on which no answer depends are ignored. Parameters that only some engines support are refused by the model's
replica, which knows its engine. Knows nothing of Serve.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from maas_ray.bodies import Body
from maas_ray.errors import RequestError
from maas_ray.serve.api.openai.messages import MAX_MESSAGES, MAX_TOOLS, AllowedTools, Message, NamedTool, Tool
from maas_ray.serve.api.validation import at_most
from maas_ray.serve.text.json_schema import ANY_OBJECT
from maas_ray.serve.text.types import SamplingParams, TextRequest
from maas_ray.tasks.text.messages import canonical_chat, canonical_tools

DEFAULT_COMPLETION_TOKENS = 16
MAX_N = 16
MAX_STOPS = 64
"""Most stop strings. OpenAI has a limit of 4."""
MAX_ANSWERS = 32
"""Most answers to a request: `n` to each of its prompts."""

# Values that change nothing here. Other values are refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
}
# Parameters on which no answer depends.
_HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "prediction",
}


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class JsonSchema(Body):
    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    document: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None  # the schema is enforced either way


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _with_its_schema(self) -> Any:
        if self.type == "json_schema" and self.json_schema is None:
            raise PydanticCustomError("missing", "Missing required parameter: '{name}'.", {"name": "json_schema"})
        if self.type != "json_schema" and self.json_schema is not None:
            raise PydanticCustomError(
                "invalid_value", "'{name}' is only allowed with type: json_schema.", {"name": "json_schema"}
            )
        return self

    @property
    def required_schema(self) -> dict[str, Any] | None:
        """The schema that an answer must follow. None: any text."""
        if self.json_schema is not None:
            return self.json_schema.document
        return ANY_OBJECT if self.type == "json_object" else None


_Stop = Annotated[str, StringConstraints(min_length=1)]


def _add_ignored(schema: dict[str, Any]) -> None:
    """Add the accepted parameters that are not fields to a body's JSON schema."""
    others: dict[str, Any] = {name: {"enum": [None, *values]} for name, values in _NEUTRAL.items()}
    others |= {name: {"description": "No answer depends on it."} for name in sorted(_HARMLESS)}
    schema["properties"] = others | schema["properties"]


class _TextBody(Body):
    model_config = ConfigDict(json_schema_extra=_add_ignored)

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """0 takes the most likely token each time."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("logit_bias")
    @classmethod
    def _by_token(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token in value or ():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise PydanticCustomError("invalid_value", 'its keys must be token ids, such as "42"')
        return value

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in _NEUTRAL:
                if value is not None and not any(type(value) is type(n) and value == n for n in _neutral(name)):
                    raise PydanticCustomError(
                        "unsupported_parameter",
                        "'{name}' is not supported at this path. Leave it out.",
                        {"name": name},
                    )
            elif name not in _HARMLESS and value is not None:
                raise PydanticCustomError("unknown_parameter", "Unknown parameter: '{name}'.", {"name": name})
        return kept

    @model_validator(mode="after")
    def _streams(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid_value", "'{name}' is only allowed with stream: true.", {"name": "stream_options"}
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _request(self, prompt: Any, max_tokens: int | None, *, logprobs: bool, **more: Any) -> TextRequest:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        logit_bias = tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items())
        return TextRequest(
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=SamplingParams.of(self, logit_bias=logit_bias, logprobs=logprobs),
            stop=stop,
            seed=self.seed,
            n=self.n or 1,
            **more,
        )


class CompletionBody(_TextBody):
    """`POST /v1/completions`"""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[list[int]], Field(min_length=1)]
        | None
    ) = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """0 gets an empty answer, with the number of tokens of the prompt."""
    best_of: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Any:
        if self.best_of not in (None, self.n or 1):
            raise PydanticCustomError(
                "unsupported_parameter",
                "'{name}' is not supported by this server unless it equals n. Leave it out.",
                {"name": "best_of"},
            )
        if self.logprobs:
            raise PydanticCustomError(
                "unsupported_parameter",
                "'{name}' above 0 is not supported by this server. 0 reports the chosen tokens.",
                {"name": "logprobs"},
            )
        if (self.n or 1) * len(self._prompts) > MAX_ANSWERS:
            raise PydanticCustomError(
                "invalid_value",
                "'{name}' requests {count} answers in all, but a request may have at most {most}.",
                {
                    "name": "prompt" if len(self._prompts) > 1 else "n",
                    "count": (self.n or 1) * len(self._prompts),
                    "most": MAX_ANSWERS,
                },
            )
        return self

    @property
    def _prompts(self) -> list[Any]:
        several = isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int)
        return list(self.prompt or ()) if several else [self.prompt or ""]

    def request(self) -> TextRequest:
        first, *others = self._prompts
        tokens = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        return self._request(first, tokens, more_prompts=tuple(others), logprobs=self.logprobs is not None)


class ChatBody(_TextBody):
    """`POST /v1/chat/completions`"""

    messages: Annotated[list[Message], at_most(MAX_MESSAGES), Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], at_most(MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _chosen_tokens_alone(self) -> Any:
        if self.logprobs and self.top_logprobs:
            raise PydanticCustomError(
                "unsupported_parameter",
                "'{name}' above 0 is not supported by this server. 0 reports the chosen tokens.",
                {"name": "top_logprobs"},
            )
        return self

    @model_validator(mode="after")
    def _possible_choice(self) -> Any:
        tools = [tool.function.name for tool in self.tools or ()]
        missing = [name for name in self._chosen if name not in tools]
        if missing or (self.tool_choice == "required" and not tools):
            raise PydanticCustomError(
                "invalid_value",
                "'{name}' names {function}, which is not among 'tools'.",
                {"name": "tool_choice", "function": missing[0] if missing else "a function"},
            )
        return self

    @property
    def _chosen(self) -> tuple[str, ...]:
        """Names of the tools that may be called."""
        if isinstance(self.tool_choice, NamedTool):
            return (self.tool_choice.function.name,)
        if isinstance(self.tool_choice, AllowedTools):
            return tuple(tool.function.name for tool in self.tool_choice.allowed_tools.tools)
        return () if self.tool_choice == "none" else tuple(tool.function.name for tool in self.tools or ())

    @property
    def _requires_call(self) -> bool:
        if isinstance(self.tool_choice, AllowedTools):
            return self.tool_choice.allowed_tools.mode == "required"
        return isinstance(self.tool_choice, NamedTool) or self.tool_choice == "required"

    def request(self) -> TextRequest:
        tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        try:
            tools = canonical_tools([tool.model_dump() for tool in self.tools or ()])
        except RecursionError as error:
            raise RequestError("'tools' is nested too deeply.", param="tools", code="invalid_value") from error
        return self._request(
            canonical_chat([message.model_dump() for message in self.messages]),
            tokens,
            logprobs=bool(self.logprobs),
            json_schema=self.response_format and self.response_format.required_schema,
            # A required call is limited by a grammar; otherwise the model only sees the tools that it may call.
            tools=tuple(tool for tool in tools if self._requires_call or tool["function"]["name"] in self._chosen),
            required_tools=self._chosen if self._requires_call else (),
            strict_tools=tuple(tool.function.name for tool in self.tools or () if tool.function.strict),
            parallel_tool_calls=self.parallel_tool_calls is not False and not isinstance(self.tool_choice, NamedTool),
        )


def _neutral(name: str) -> tuple[Any, ...]:
    """The values of a parameter that change nothing; a number as int and as float."""
    return tuple(v for n in _NEUTRAL[name] for v in ((n, float(n)) if type(n) is int else (n,)))
