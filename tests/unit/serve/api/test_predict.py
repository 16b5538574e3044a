"""Predict, the plain way: rows and files to tensors, answers in the task's words; hostile ones told apart."""

import asyncio
import base64
import io
import json
import struct
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maas_ray.errors import RequestError
from maas_ray.serve.api.predict import Head, PredictBody, Rows, parse_rows
from maas_ray.tasks.vision.classification import ImageClassificationSpec
from tests.support.bundles import image_task, text_task
from tests.support.errors import raises

IMAGES, TEXT = image_task(), text_task()
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
HEAD = Head(model="m", version="3")


def encoded(pixels: np.ndarray, format: str = "PNG", mode: str | None = None) -> bytes:
    picture, out = Image.fromarray(pixels), io.BytesIO()
    (picture.convert(mode) if mode else picture).save(out, format)
    return out.getvalue()


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def parse(body: Any, task: Any = IMAGES, content_type: str = "application/json", **options: Any) -> Rows:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_rows(PredictBody(data, content_type), task, **options)


def inputs(body: Any, task: Any = IMAGES, content_type: str = "application/json") -> list[dict[str, Any]]:
    """The tensors of a body's rows."""

    async def made() -> list[dict[str, Any]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        asked = parse_rows(PredictBody(data, content_type), task)
        return await asked.inputs(task)

    return asyncio.run(made())


def form(files: Any = None, **fields: str) -> tuple[bytes, str]:
    """A multipart form's body and content type."""
    parts = [(name, (None, value)) for name, value in fields.items()]
    parts += files.items() if isinstance(files, dict) else files or []
    request = httpx.Request("POST", "http://test", files=parts)
    return request.read(), request.headers["content-type"]


# --- images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        text_of(encoded(PIXELS)),
        "data:image/png;base64," + text_of(encoded(PIXELS)),
        "\n".join(text_of(encoded(PIXELS))[at : at + 76] for at in range(0, 400, 76)),
        text_of(encoded(PIXELS, "BMP")),
        PIXELS.tolist(),
        PIXELS[..., None].tolist(),
    ],
    ids=["base64", "data-url", "folded", "bmp", "pixels", "pixels-1"],
)
def test_an_image_may_be_base64_a_data_url_or_pixels(image: Any) -> None:
    (row,) = inputs({"image": image})
    np.testing.assert_array_equal(row["image"], PIXELS[..., None])


@pytest.mark.parametrize("color", ["rgb", "grey"])
@pytest.mark.parametrize("size", [(8, 8), (13, 5), (30, 40)])
@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1"])
def test_an_image_is_converted_exactly_as_in_training(color: Any, size: tuple[int, int], mode: str) -> None:
    spec = ImageClassificationSpec(image_size=8, color=color)
    rows = [{"image": PIXELS[..., None], "label": label} for label in "ab"]
    task: Any = spec.fit(rows)
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    content = encoded(noise, mode=mode)

    prepared = task.encode([spec.parse_row({"image": content, "label": "a"})])["pixel_values"]
    (row,) = inputs({"image": text_of(content)}, task)
    asked = task.encode([row])["pixel_values"]

    assert row["image"].shape == task.inputs[0].shape[1:]
    np.testing.assert_array_equal(asked, prepared)


def test_rows_keep_their_order() -> None:
    shades = [np.full((8, 8), shade, np.uint8) for shade in (3, 1, 2)]
    rows = inputs({"instances": [{"image": text_of(encoded(shade))} for shade in shades]})
    assert [int(row["image"][0, 0, 0]) for row in rows] == [3, 1, 2]


def test_answers_have_the_task_s_fields() -> None:
    answers = [IMAGES.to_answer({"label": "dark", "scores": np.float32([0.75, 0.25])})] * 2
    one, two = (
        json.loads(parse(body).render(answers[:count], HEAD))
        for count, body in ((1, {"image": [[1]]}), (2, {"instances": [{"image": [[1]]}] * 2}))
    )
    said = {"label": "dark", "scores": {"dark": 0.75, "light": 0.25}}
    assert one == {"model": "m", "version": "3", **said}
    assert two == {"model": "m", "version": "3", "predictions": [said, said]}
    with raises(RequestError, "not_finite", "/v2/models/m/infer"):
        parse({"image": [[1]]}).render([IMAGES.to_answer({"label": "dark", "scores": np.float32([np.nan, 1])})], HEAD)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, data: bytes, *more: bytes) -> bytes:
    """A grey PNG that says what it likes of itself."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


HOSTILE = {
    "no image": (b"hello", "BMP, GIF, JPEG, PNG, TIFF, WEBP"),
    "empty": (b"", ""),
    "truncated": (encoded(PIXELS)[:-30], ""),
    "header alone": (encoded(PIXELS)[:40], ""),
    "bomb": (png(50_000, 50_000, zlib.compress(bytes(50_001) * 100)), ""),
    "large": (png(8000, 8000, b""), "8000 × 8000 pixels"),
    "huge sides": (png(2**31 - 1, 2**31 - 1, b""), ""),
    "no pixels": (png(0, 0, b""), ""),
    "text bomb": (png(8, 8, b"", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))), ""),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", ""),
    "float": (encoded(PIXELS.astype(np.float32), "TIFF"), ""),
}


@pytest.mark.parametrize(("content", "named"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("way", ["json", "form"])
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_a_hostile_image_is_refused_with_little_memory(content: bytes, named: str, way: str) -> None:
    body, content_type = form({"file": content}) if way == "form" else ({"image": text_of(content)}, "application/json")
    tracemalloc.start()
    try:
        with raises(RequestError, "invalid_image", named) as caught:
            inputs(body, content_type=content_type)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (caught.value.status, caught.value.param) == (400, "image")
    assert peak < 50_000_000


@given(
    content=st.binary(max_size=200),
    at=st.integers(0, 400),
    format=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]),
)
def test_a_damaged_image_is_decoded_or_refused(content: bytes, at: int, format: str) -> None:
    whole = encoded(PIXELS, format)
    at %= len(whole)
    with suppress(RequestError):
        inputs({"image": text_of(whole[:at] + content + whole[at + len(content) :])})


# --- JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "code", "named"),
    [
        (b"{", None, "invalid_json", ""),
        ([], None, "invalid_type", "an array"),
        (5, None, "invalid_type", "an integer"),
        ({}, "image", "missing_required_parameter", "'image'"),
        ({"image": "eA==", "size": 5}, "size", "unknown_parameter", "'size'"),
        ({"image": "not base64!"}, "image", "invalid_value", ""),
        ({"image": None}, "image", "invalid_value", ""),
        ({"image": []}, "image", "invalid_value", ""),
        ({"image": [[1], [2, 3]]}, "image", "invalid_value", ""),
        ({"image": [[256]]}, "image", "invalid_value", "255"),
        ({"image": [[-1]]}, "image", "invalid_value", "255"),
        ({"image": [[1.0]]}, "image", "invalid_value", ""),
        ({"image": [[True]]}, "image", "invalid_value", ""),
        ({"image": [[10**400]]}, "image", "invalid_value", ""),
        ({"image": [["1"]]}, "image", "invalid_value", ""),
        ({"image": [{"a": 1}]}, "image", "invalid_value", ""),
        ({"image": [[[1, 2]]]}, "image", "invalid_image", "[1, 1, 2]"),
        ({"image": [1, 2]}, "image", "invalid_value", ""),
        ({"image": [["a" * 10_000, *"b" * 10_000]]}, "image", "invalid_value", ""),  # as an array 400 MB
        ({"image": [[[[1]]]]}, "image", "invalid_value", ""),
        ({"instances": []}, "instances", "invalid_value", "0 rows"),
        ({"instances": {}}, "instances", "invalid_type", "256"),
        ({"instances": [{"image": [[1]]}] * 257}, "instances", "invalid_value", "257 rows"),
        ({"instances": [{"image": [[1]]}], "image": "x"}, "image", "unknown_parameter", "'image'"),
        ({"instances": [{"image": [[1]]}, 5]}, "instances[1]", "invalid_type", "an integer"),
        ({"instances": [{"image": [[1]]}, {}]}, "instances[1].image", "missing_required_parameter", ""),
        ({"instances": [{"image": [[1]]}, {"image": "aGVsbG8="}]}, "instances[1].image", "invalid_image", ""),
    ],
)
def test_a_wrong_row_is_named(body: Any, param: str | None, code: str, named: str) -> None:
    with raises(RequestError, code, param or "", named) as caught:
        inputs(body)
    assert (caught.value.param, caught.value.status) == (param, 400)
    assert len(caught.value.message) < 400


def test_json_needs_no_content_type() -> None:
    for content_type in ("", "application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8"):
        assert len(inputs({"image": [[1]]}, content_type=content_type)) == 1


# --- forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["file", "image"])
def test_a_form_s_file_fills_the_task_s_field(field: str) -> None:
    body, content_type = form({field: ("digit.png", encoded(PIXELS), "image/png")})
    (row,) = inputs(body, content_type=content_type)
    np.testing.assert_array_equal(row["image"], PIXELS[..., None])
    assert not parse(body, content_type=content_type).many


def test_a_form_s_fields_have_the_types_of_the_task() -> None:
    body, content_type = form(prompt="a b", max_tokens="5", temperature="0.5")
    (row,) = parse(body, TEXT, content_type).rows
    assert row.model_dump(exclude_defaults=True) == {"prompt": "a b", "max_tokens": 5, "temperature": 0.5}


FILE = ("a.png", encoded(PIXELS))


@pytest.mark.parametrize(
    ("task", "files", "fields", "param", "code", "named"),
    [
        (IMAGES, None, {"other": "x"}, "file", "missing_required_parameter", ""),
        (IMAGES, None, {"file": "a.png"}, "file", "invalid_type", "-F file=@PATH"),
        (IMAGES, {"picture": FILE}, {}, "picture", "invalid_type", "'file'"),
        (IMAGES, {"file": FILE}, {"size": "5"}, "size", "unknown_parameter", ""),
        (IMAGES, {"file": FILE}, {"image": "x"}, "file", "invalid_value", ""),
        (IMAGES, [("file", FILE), ("file", FILE)], {}, "file", "invalid_value", ""),
        (IMAGES, {"file": FILE}, {f"f{n}": "" for n in range(64)}, None, "invalid_form", "64"),
        (TEXT, {"prompt": FILE}, {}, "prompt", "invalid_type", ""),
        (TEXT, None, {"prompt": "a", "max_tokens": "many"}, "max_tokens", "invalid_value", '"many"'),
        (TEXT, None, {"max_tokens": "5"}, "prompt", "missing_required_parameter", ""),
    ],
)
def test_a_wrong_form_names_its_field(
    task: Any, files: Any, fields: dict, param: str | None, code: str, named: str
) -> None:
    body, content_type = form(files, **fields)
    with raises(RequestError, code, param or "", named) as caught:
        inputs(body, task, content_type)
    assert (caught.value.param, caught.value.status) == (param, 400)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=x"),
        (b"x", "multipart/form-data; boundary="),
        (b"hello", "Multipart/Form-Data; boundary=x"),
        (b"--x\r\n\r\nhello\r\n--x--", "multipart/form-data; boundary=x"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\na',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--x--',
            "multipart/form-data; boundary=x; charset=idna",
        ),
    ],
)
def test_a_broken_form_is_a_400(body: bytes, content_type: str) -> None:
    with pytest.raises(RequestError) as caught:
        inputs(body, content_type=content_type)
    assert caught.value.status == 400


WHOLE, TYPE = form({"file": FILE}, other="x")


@given(at=st.integers(0, len(WHOLE)), junk=st.binary(max_size=40), cut=st.integers(0, 60))
def test_a_damaged_form_is_parsed_or_refused(at: int, junk: bytes, cut: int) -> None:
    with suppress(RequestError):
        inputs(WHOLE[:at] + junk + WHOLE[at + cut :], content_type=TYPE)
