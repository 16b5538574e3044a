"""Images as files show them: in rows and in requests alike, an image is turned as its EXIF orientation says."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from maas_ray.errors import InvalidError
from maas_ray.tasks import load_task
from maas_ray.tasks.vision import images
from maas_ray.tasks.vision.classification import ImageClassification, ImageClassificationSpec
from maas_ray.tasks.vision.requests import ImageRow
from tests.support.errors import raises

DRAWN = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)


def file_of(orientation: int, form: str = "PNG", mode: str = "RGB") -> bytes:
    picture = Image.fromarray(DRAWN).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    picture.save(data, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    return data.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_file_is_turned_as_pillow_turns_it(form: str, orientation: int) -> None:
    content = file_of(orientation, form)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(images.decode(content), expected)
    if orientation in (0, 1, 9):
        assert expected.shape == DRAWN.shape
    elif orientation > 4:
        assert expected.shape == (9, 6, 3)


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGBA", "P"])
def test_every_mode_is_turned(mode: str) -> None:
    upright, turned = (images.decode(file_of(orientation, mode=mode)) for orientation in (1, 6))
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))  # 6: the viewer turns it clockwise


def test_an_array_has_no_orientation_and_damaged_exif_does_not_matter() -> None:
    np.testing.assert_array_equal(images.decode(DRAWN), DRAWN)
    data = io.BytesIO()
    Image.fromarray(DRAWN).save(data, "PNG", exif=b"Exif\0\0MM\0*\0\0\0")
    np.testing.assert_array_equal(images.decode(data.getvalue()), DRAWN)


def test_integers_beyond_16_bits_are_of_unknown_range() -> None:
    for value in (-1, 1 << 16):
        data = io.BytesIO()
        Image.fromarray(np.full((2, 2), value, np.int32)).save(data, "TIFF")
        with raises(InvalidError, "unknown_range"):
            images.decode(data.getvalue())


def fitted(path: Path, content: bytes) -> ImageClassification:
    spec = ImageClassificationSpec(image_size=(9, 6))
    task = spec.fit([spec.parse_row({"image": content, "label": label}) for label in "ab"])  # type: ignore[misc]
    path.mkdir()
    task.save(path)
    return task


def test_a_row_and_a_request_are_the_same_image(tmp_path: Path) -> None:
    content = file_of(6)
    task = fitted(tmp_path / "new", content)
    row = task.spec.parse_row({"image": content, "label": "a"})
    assert row is not None
    np.testing.assert_array_equal(row["image"], np.rot90(DRAWN, -1))
    stored = task.encode([row])["pixel_values"][0].transpose(1, 2, 0)
    loaded = load_task(tmp_path / "new")
    for given in (content, row["image"].tolist()):
        np.testing.assert_array_equal(loaded.to_inputs(ImageRow(image=given))["image"], stored)


def test_a_bundle_from_before_sees_images_as_it_was_trained(tmp_path: Path) -> None:
    fitted(tmp_path / "old", file_of(6))
    document = json.loads((tmp_path / "old" / "task.json").read_text())
    assert document["features"].pop("upright") is True  # maas_ray 0.2 did not write it
    (tmp_path / "old" / "task.json").write_text(json.dumps(document))
    inputs = load_task(tmp_path / "old").to_inputs(ImageRow(image=file_of(3)))["image"]
    expected = np.asarray(Image.fromarray(DRAWN).resize((6, 9), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(inputs, expected)
