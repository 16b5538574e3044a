"""Images as tasks take them: a file's bytes to pixels, by Pillow, however hostile. Knows nothing of what they show."""

import io
import math
from typing import Any, cast

import numpy as np

MOST_PIXELS = 50_000_000  # decoding takes some ten bytes for each, whatever the file's own size
# What Pillow reads by itself; for others it starts programs, or reads what nobody sends as a picture.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


def decode(image: Any, most: float = math.inf, formats: tuple[str, ...] | None = None) -> np.ndarray:
    """Encoded bytes or an array → uint8 [H, W, 1 or 3].

    Args:
        image: the bytes, or the array.
        most: pixels an image may have; more are not decoded.
        formats: Pillow's names of the formats that are decoded. None: all that it knows.

    Raises:
        ValueError: it is no such image.
    """
    if isinstance(image, np.ndarray):
        image = image[..., None] if image.ndim == 2 else image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise ValueError(f"an image array of {image.dtype} {image.shape}; give uint8 [H, W] or [H, W, 1 or 3]")
        if not image.size:
            raise ValueError(f"an image array without pixels, {image.shape}")
        return cast(np.ndarray, image)
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(image), formats=formats) as picture:
            if picture.width * picture.height > most:
                size = f"{picture.width} × {picture.height} pixels"
                raise ValueError(f"it has {size}, more than {most:,} in all; send a smaller one")
            if picture.mode == "F":
                raise ValueError("its pixels are floating point numbers of no known range; save it with 8 or 16 bits")
            if picture.mode.startswith("I"):
                # 16 bits a pixel: the high byte is the picture. Pillow's own conversion would cut, not scale.
                high = np.clip(np.asarray(picture) >> 8, 0, 255)
                return cast(np.ndarray, high.astype(np.uint8)[..., None])
            grey = picture.mode in ("1", "L", "LA")
            return np.array(picture.convert("L"))[..., None] if grey else np.array(picture.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError(f"not an image of {', '.join(formats) if formats else 'any known format'}") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them meet
        raise ValueError(f"not a readable image: {error or type(error).__name__}") from error
