"""Schemas of the answers, for the OpenAPI document. A fuzzer in the tests checks the answers against them.

Answers may have further fields. The rows of `predict` are described by the tasks.
"""

from typing import Any, Literal

from pydantic import BaseModel

from maas_ray.serve.routes import Tensor

# --- OpenAI ----------------------------------------------------------------------------------------


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Piece(BaseModel):
    index: int
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class _Choice(_Piece):
    finish_reason: str


class CompletionChoice(_Choice):
    text: str


class CompletionPiece(_Piece):
    text: str


class CalledFunction(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class CalledFunctionPiece(BaseModel):
    name: str | None = None
    arguments: str


class ToolCallPiece(BaseModel):
    index: int
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunctionPiece


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(_Choice):
    message: ChatMessage


class ChatDelta(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallPiece] | None = None


class ChatPiece(_Piece):
    delta: ChatDelta


class _TextAnswer(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str


class Completion(_TextAnswer):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(_TextAnswer):
    object: Literal["text_completion"]
    choices: list[CompletionPiece]
    usage: Usage | None = None


class ChatCompletion(_TextAnswer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatCompletionChunk(_TextAnswer):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatPiece]
    usage: Usage | None = None


class EmbeddingVector(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"]
    data: list[EmbeddingVector]
    model: str
    usage: EmbeddingUsage


class DurationUsage(BaseModel):
    type: Literal["duration"]
    seconds: float


class Transcription(BaseModel):
    text: str
    usage: DurationUsage


class Segment(BaseModel):
    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float | None
    compression_ratio: float
    no_speech_prob: float | None


class TranscriptionVerbose(Transcription):
    task: Literal["transcribe"]
    language: str
    duration: float
    segments: list[Segment]


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An error under any path but `/v2`."""

    error: ErrorDetail


# --- Open Inference Protocol -----------------------------------------------------------------------


class Server(BaseModel):
    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(Ready):
    name: str


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class OutputParameters(BaseModel):
    binary_data_size: int


class Output(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] = []
    parameters: OutputParameters | None = None


class InferAnswer(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Output]


class InferenceError(BaseModel):
    """An error under `/v2`."""

    error: str
