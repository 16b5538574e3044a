"""Decoding of image files to pixels by Pillow, safe against hostile files."""

import io
import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from maas_ray.errors import InvalidError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 50_000_000  # decoding takes about ten bytes per pixel, whatever the size of the file
# Formats that Pillow reads by itself. For others it starts programs, or they are not used for pictures.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # the tag of EXIF 2.32, 4.6.4


def decode(
    image: Any, max_pixels: float = math.inf, formats: tuple[str, ...] | None = None, *, upright: bool = True
) -> np.ndarray:
    """Encoded bytes or an array → uint8 [H, W, 1 or 3], upright: turned as the file's EXIF orientation says.

    Phones and cameras store the sensor's rows and say in EXIF how to turn them, as every viewer does.

    Args:
        image: the bytes, or the array.
        max_pixels: maximum size of an image; larger ones are not decoded.
        formats: Pillow's names of the formats to decode. None: all that it supports.
        upright: False for models that were trained on images as they are stored.

    Raises:
        InvalidError: it is not such an image.
    """
    if isinstance(image, np.ndarray):
        image = image[..., None] if image.ndim == 2 else image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise InvalidError(
                "wrong_shape",
                f"an image array must be uint8 [H, W] or [H, W, 1 or 3]; it is {image.dtype} {list(image.shape)}",
            )
        if not image.size:
            raise InvalidError("wrong_shape", f"an image array must have pixels; its shape is {list(image.shape)}")
        return cast(np.ndarray, image)
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(image), formats=formats) as picture:
            if picture.width * picture.height > max_pixels:
                size = f"{picture.width} × {picture.height} pixels"
                raise InvalidError("image_too_large", f"the image has {size}, more than {max_pixels:,} in all")
            if picture.mode == "F":
                raise InvalidError(
                    "unknown_range", "the pixels are floating point numbers of unknown range; save it with 8 or 16 bits"
                )
            pixels = _pixels(picture)
            return _turned(pixels, _orientation(picture)) if upright else pixels
    except UnidentifiedImageError as error:
        known = ", ".join(formats) if formats else "any known format"
        raise InvalidError("invalid_image", f"not an image of {known}") from error
    except InvalidError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of errors for damaged files
        raise InvalidError("invalid_image", f"not a readable image: {error or type(error).__name__}") from error


def _pixels(picture: "Image") -> np.ndarray:
    """uint8 [H, W, 1 or 3], in the order of the file."""
    if picture.mode.startswith("I"):
        # From 16 bits per pixel, take the high byte. Pillow's own conversion would clip instead of scale.
        values = np.asarray(picture) >> 8
        if values.min() < 0 or values.max() > 255:
            raise InvalidError(
                "unknown_range", "the pixels are integers of more than 16 bits; save it with 8 or 16 bits"
            )
        return cast(np.ndarray, values.astype(np.uint8)[..., None])
    grey = picture.mode in ("1", "L", "LA")
    return np.array(picture.convert("L"))[..., None] if grey else np.array(picture.convert("RGB"))


def _orientation(picture: "Image") -> Any:
    """The EXIF orientation of a loaded image. 1: upright, as Pillow leaves a TIFF, or if EXIF is damaged."""
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged block of metadata raises all kinds of errors; the pixels are whole
        return 1


def _turned(pixels: np.ndarray, orientation: Any) -> np.ndarray:
    """Pixels [H, W, C] of an EXIF orientation, turned and mirrored to 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
