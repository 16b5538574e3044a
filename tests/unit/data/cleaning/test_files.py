"""Images and sound that are broken, too small, or empty."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from maas_ray.data.cleaning import Dropped, Notes
from maas_ray.data.cleaning.audio import Audio
from maas_ray.data.cleaning.image import Image
from maas_ray.errors import InvalidError, SpecError
from tests.support import speech
from tests.support.errors import raises


def png(pixels: np.ndarray, format: str = "PNG") -> bytes:
    data = io.BytesIO()
    Picture.fromarray(pixels).save(data, format)
    return data.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def fate(step: Any, content: Any) -> str | None:
    try:
        step.clean({step.column: content, "label": "a"}, Notes())
    except Dropped as reason:
        return str(reason)
    return None


GREY = np.full((8, 8), 128, np.uint8)


@pytest.mark.parametrize(
    ("fields", "content", "reason"),
    [
        ({}, png(noise(8, 8)), None),
        ({}, png(noise(8, 8), "JPEG"), None),
        ({}, png(noise(1, 9)), None),
        ({}, png(GREY), "blank"),
        ({}, png(np.full((8, 8, 3), (255, 0, 0), np.uint8), "JPEG"), "blank"),
        ({"min_contrast": 0}, png(GREY), None),
        ({"min_contrast": 20}, png(GREY + np.eye(8, dtype=np.uint8)), "blank"),
        ({"min_side": 9}, png(noise(8, 20)), "too small"),
        ({"max_aspect_ratio": 3}, png(noise(8, 25)), "too long and thin"),
        ({"max_aspect_ratio": 3}, png(noise(24, 8)), None),
        ({"corrupt": "drop"}, b"", "corrupt"),
        ({"corrupt": "drop"}, png(noise(64, 64))[:-2000], "corrupt"),
        ({"corrupt": "drop", "max_pixels": 63}, png(noise(8, 8)), "corrupt"),
        ({}, None, None),
    ],
)
def test_images_are_dropped_by_size_shape_and_contrast(
    fields: dict[str, Any], content: bytes | None, reason: str | None
) -> None:
    assert fate(Image(**fields), content) == reason


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"GIF89a", ["image: not a"]),
        (b"no image", ["image: ", "BMP, GIF, JPEG, PNG, TIFF, WEBP"]),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ["image: ", "BMP"]),
        (png(noise(8, 8)), ["image: ", "8 × 8 pixels", "60"]),
    ],
)
def test_a_broken_image_is_an_error_of_its_row(content: bytes, values: list[str]) -> None:
    with raises(InvalidError, "corrupt_image", *values):
        Image(max_pixels=60).clean({"image": content}, Notes())


def loud(share: float) -> np.ndarray:
    """A second of quiet noise, of which a share is at full scale."""
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, speech.RATE).astype(np.float32)
    samples[: int(share * len(samples))] = 1.0
    return samples


@pytest.mark.parametrize(
    ("fields", "samples", "reason"),
    [
        ({}, speech.tone(1), None),
        ({}, np.zeros(speech.RATE, np.float32), "silent"),
        ({}, speech.tone(1) * 1e-3, "silent"),
        ({"min_dbfs": -80}, speech.tone(1) * 1e-3, None),
        ({"min_dbfs": None}, np.zeros(speech.RATE, np.float32), None),
        ({}, loud(0.005), None),
        ({}, loud(0.05), "clipped"),
        ({"max_clipped": 1}, loud(0.05), None),
        ({}, speech.tone(0.05), "too short"),
        ({"min_seconds": 0.01}, speech.tone(0.05), None),
        ({"max_seconds": 0.5}, speech.tone(1), "too long"),
        ({"max_seconds": 1}, speech.tone(1), None),
        ({}, np.stack([speech.tone(1)] * 2, axis=1), None),
    ],
)
@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_audio_is_dropped_by_length_loudness_and_clipping(
    fields: dict[str, Any], samples: np.ndarray, reason: str | None, format: str
) -> None:
    assert fate(Audio(**fields), speech.file_of(samples, format=format)) == reason


@pytest.mark.parametrize("content", [b"", b"RIFF no sound", png(noise(8, 8))])
def test_a_broken_clip_is_an_error_of_its_row_or_dropped(content: bytes) -> None:
    with raises(InvalidError, "corrupt_audio", "audio: ", "empty" if not content else "WAV, FLAC, OGG or MP3"):
        Audio().clean({"audio": content}, Notes())
    assert fate(Audio(corrupt="drop"), content) == "corrupt"
    assert fate(Audio(), None) is None
    with raises(InvalidError, "not_bytes", "audio", "str"):
        Audio().clean({"audio": "a.wav"}, Notes())


def test_crossed_bounds_are_refused() -> None:
    with raises(SpecError, "bounds_crossed", "min_seconds (3)", "max_seconds (2)"):
        Audio.parse({"min_seconds": 3, "max_seconds": 2})


def test_other_columns_can_be_checked() -> None:
    row = {"keep/thumb": png(GREY)}

    assert Image(column="thumb").reads == ("thumb",)
    with pytest.raises(Dropped, match="blank"):
        Image(column="thumb").clean(row, Notes())
    with raises(InvalidError, "column_missing", "'image'", "thumb"):
        Image().clean(row, Notes())
