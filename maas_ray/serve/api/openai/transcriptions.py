"""OpenAI's API for speech: the forms of requests and the bodies of answers.

The file is forwarded unread to the model's replica, in a form for `predict`, and is decoded only there. An unsupported
parameter that would change the answer is refused by name. Knows nothing of Serve.
"""

import json
import secrets
import zlib
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from maas_ray.bodies import Body
from maas_ray.errors import RequestError
from maas_ray.serve.api.multipart import FORM_TYPE, is_form, parse_form
from maas_ray.serve.api.predict import FILE, PredictBody
from maas_ray.serve.api.validation import request_error

TASK = "automatic-speech-recognition"
_SEVERAL = "[]"  # ends the name of a form's field that may be repeated


class TranscriptionBody(Body):
    """`POST /v1/audio/transcriptions`"""

    file: bytes
    model: str = Field(min_length=1)
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    language: str | None = Field(None, min_length=1, max_length=64)
    prompt: str = ""
    temperature: float = Field(0.0, ge=0, le=1)
    stream: bool = False
    timestamp_granularities: list[Literal["segment", "word"]] = []

    @model_validator(mode="after")
    def _possible(self) -> Any:
        for name, neutral in (("prompt", ""), ("temperature", 0.0), ("stream", False)):
            if getattr(self, name) != neutral:
                raise PydanticCustomError(
                    "unsupported_parameter", "'{name}' is not supported by this server. Leave it out.", {"name": name}
                )
        name = "timestamp_granularities"
        if "word" in self.timestamp_granularities:
            raise PydanticCustomError(
                "unsupported_parameter", "'{name}' may only be \"segment\" on this server.", {"name": name}
            )
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise PydanticCustomError(
                "invalid_value", "'{name}' is only allowed with response_format: verbose_json.", {"name": name}
            )
        return self

    def to_rows(self) -> PredictBody:
        """A form of one row: the file, and the parameters that the model accepts."""
        boundary = secrets.token_hex(16).encode()
        head = b'--%s\r\nContent-Disposition: form-data; name="%s"'
        parts = [head % (boundary, FILE.encode()), b'; filename="audio"\r\n\r\n', self.file, b"\r\n"]
        if self.language is not None:
            parts += [head % (boundary, b"language"), b"\r\n\r\n", self.language.encode(), b"\r\n"]
        parts.append(b"--%s--\r\n" % boundary)
        return PredictBody(b"".join(parts), f"{FORM_TYPE}; boundary={boundary.decode()}")


def parse_transcription(data: bytes, content_type: str) -> TranscriptionBody:
    """The request in a form.

    Raises:
        RequestError: the request is wrong; names the field.
    """
    if not is_form(content_type):
        raise RequestError(
            f"The Content-Type is {content_type!r}. Send a form ({FORM_TYPE}) with the file as {FILE!r}.",
            code="invalid_form",
        )
    fields: dict[str, Any] = {}
    for name, value in parse_form(data, content_type):
        if isinstance(value, bytes) != (name == FILE):
            problem = (
                "is not a file. With curl: -F file=@PATH" if name == FILE else f"is a file. Only {FILE!r} may be one"
            )
            raise RequestError(f"The form's field {name!r} {problem}.", param=name, code="invalid_type")
        if name.endswith(_SEVERAL):
            fields.setdefault(name.removesuffix(_SEVERAL), []).append(value)
        elif name in fields:
            raise RequestError(f"The form has the field {name!r} twice. Keep one.", param=name, code="invalid_value")
        else:
            fields[name] = value
    try:
        return TranscriptionBody.model_validate(fields, strict=False)
    except ValidationError as error:
        raise request_error(error) from error


def file_error(error: RequestError) -> RequestError:
    """An error of the row's audio as an error of the form's file."""
    if error.param != "audio":
        return error
    return RequestError(error.message.removeprefix("audio: "), param=FILE, code=error.code, status=error.status)


@dataclass(frozen=True)
class Transcript:
    """The transcript of a file."""

    text: str
    language: str | None
    duration: float

    @classmethod
    def of_row(cls, answer: bytes) -> "Transcript":
        """From the answer to `TranscriptionBody.to_rows`."""
        document = json.loads(answer)
        return cls(document["text"], document["language"], document["duration"])

    def render(self, response_format: str) -> tuple[bytes, str]:
        """The body, and its content type."""
        document: dict[str, Any] = {"text": self.text, "usage": {"type": "duration", "seconds": self.duration}}
        if response_format == "verbose_json":
            document |= {
                "task": "transcribe",
                "language": self.language or "unknown",
                "duration": self.duration,
                "segments": [self._segment()],
            }
        elif response_format != "json":
            return self._plain(response_format).encode(), "text/plain; charset=utf-8"
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(), "application/json"

    def _segment(self) -> dict[str, Any]:
        """One segment: the whole clip. Values that are not measured here are null."""
        text = self.text.encode()
        return {
            "id": 0,
            "seek": 0,
            "start": 0.0,
            "end": self.duration,
            "text": self.text,
            "tokens": [],
            "temperature": 0.0,
            "avg_logprob": None,
            "compression_ratio": len(text) / len(zlib.compress(text)),
            "no_speech_prob": None,
        }

    def _plain(self, response_format: str) -> str:
        if response_format == "text":
            return f"{self.text}\n"
        point, head = (",", "1\n") if response_format == "srt" else (".", "WEBVTT\n\n")
        return f"{head}{_clock(0, point)} --> {_clock(self.duration, point)}\n{self.text}\n\n"


def _clock(seconds: float, point: str) -> str:
    """A time such as `00:00:01,250`."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
