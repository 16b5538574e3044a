"""The request row of a vision model: an image as a file, as base64 or as pixels."""

from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, FailFast, Field, PlainValidator, TypeAdapter, WithJsonSchema
from pydantic_core import PydanticCustomError

from maas_ray.bodies import decoded_base64
from maas_ray.tasks.rows import RequestRow

_Byte = Annotated[int, Field(ge=0, le=255)]
_Pixel = _Byte | Annotated[list[_Byte], Field(min_length=1, max_length=3)]
_Line = Annotated[list[_Pixel], Field(min_length=1), FailFast()]
_PIXELS = TypeAdapter(Annotated[list[_Line], Field(min_length=1), FailFast()], config=ConfigDict(strict=True))


def _image(value: Any) -> bytes | np.ndarray:
    """A file, its base64, or nested lists of pixels → the file's bytes, or uint8 [H, W] or [H, W, channels]."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return decoded_base64(value)
        except ValueError as error:
            raise PydanticCustomError("image", "Not base64 of an image file: {why}", {"why": str(error)}) from error
    if not isinstance(value, list):
        raise PydanticCustomError("image", "Give base64 of an image file, or rows of pixels")
    try:
        return np.array(_PIXELS.validate_python(value), dtype=np.uint8)
    except ValueError as error:
        raise PydanticCustomError(
            "image", "Pixels are whole numbers from 0 to 255, or up to three of them, in rows of one length"
        ) from error


class ImageRow(RequestRow):
    """An image."""

    image: Annotated[
        bytes | np.ndarray,
        PlainValidator(_image),
        WithJsonSchema(
            {"anyOf": [{"type": "string", "contentEncoding": "base64", "minLength": 1}, _PIXELS.json_schema()]}
        ),
        Field(examples=[[[0, 255], [255, 0]]]),
    ]
    """A PNG, JPEG, WebP, GIF, BMP or TIFF file in base64, or rows of pixels: numbers, or [red, green, blue]. Any
    size and colour is converted as the training images were."""
