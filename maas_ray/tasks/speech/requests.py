"""The request and answer rows of speech recognition: a clip, and its transcript."""

from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from maas_ray.bodies import decoded_base64
from maas_ray.tasks.rows import AnswerRow, RequestRow

_SILENCE = (
    "ZkxhQwAAACIQABAAAAALAAANAfQA8AAAH0Ae4Bk2cWCcfWPP6JuSCtMThAAAKCAAAAByZWZlcmVuY2UgbGliRkxBQyAxLjQuMiAyMDIyMTAyMgAA"
    "AAD/+MQIAAQAAAD4VP/4dAgBDz+AAAAASPM="
)
"""One second as FLAC."""


def _audio(value: Any) -> bytes:
    """A file, or its base64 → the file's bytes."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("audio", "Give base64 of an audio file")
    try:
        return decoded_base64(value)
    except ValueError as error:
        raise PydanticCustomError("audio", "Not base64 of an audio file: {why}", {"why": str(error)}) from error


class SpeechRow(RequestRow):
    """A clip of speech."""

    audio: Annotated[
        bytes,
        PlainValidator(_audio),
        WithJsonSchema({"type": "string", "contentEncoding": "base64", "minLength": 1}),
        Field(examples=[_SILENCE]),
    ]
    """A WAV, FLAC, OGG or MP3 file in base64. Any sample rate and number of channels is converted as the training clips
    were."""
    language: str | None = None
    """The spoken language, such as `en`. It is refused if the model is known to be for another language."""


class SpeechAnswer(AnswerRow):
    """The transcript of a clip."""

    text: str
    """The transcript."""
    language: str | None
    """The language of the model's training, if it was named."""
    duration: float
    """Length of the clip, seconds."""
