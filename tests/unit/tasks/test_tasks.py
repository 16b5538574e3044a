"""A task gives training and serving the same numbers, and comes back from a directory as it went in."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maas_ray.errors import CorruptError, DataError, InvalidError, RequestError, UnlearntError
from maas_ray.tasks import load_task
from maas_ray.tasks.text.generation import END_OF_TEXT, TextGeneration, TextGenerationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from maas_ray.tasks.vision.classification import ImageClassification, ImageClassificationSpec
from tests.support.errors import raises

CORPUS = [
    "def add(a, b):\n    return a + b\n",
    "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n",
    "Grüße aus Köln – 你好 🙂\n",
] * 5


@pytest.fixture(scope="session")
def text_task() -> TextGeneration:
    spec = TextGenerationSpec(tokenizer=FittedTokenizer(vocab_size=400), sequence_length=16)
    return spec.fit(parsed(spec, [{"text": text} for text in CORPUS]))  # type: ignore[return-value]


def parsed(spec: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for raw in rows if (row := spec.parse_row(raw)) is not None]


def ids_of(task: TextGeneration, text: str) -> list[int]:
    [ids] = task.encode([{"text": text}])["input_ids"]
    return [int(one) for one in ids]


# --- text: rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "  \n\t ", b"", b"\xef\xbb\xbf"])
def test_a_document_without_text_is_empty(text: Any) -> None:
    assert TextGenerationSpec().parse_row({"text": text}) is None


def test_a_document_of_bytes_is_utf8_without_its_byte_order_mark() -> None:
    assert TextGenerationSpec().parse_row({"text": b"\xef\xbb\xbfab\xc3\xa9"}) == {"text": "abé"}


@pytest.mark.parametrize(
    ("text", "code", "named"), [(b"ab\xff", "not_utf_8", "byte 0xff at 2"), (5, "wrong_type", "text is a int")]
)
def test_a_malformed_document_is_refused(text: Any, code: str, named: str) -> None:
    with raises(InvalidError, code, named):
        TextGenerationSpec().parse_row({"text": text})


# --- text: tokens ----------------------------------------------------------------------------------


@given(text=st.text())
def test_every_text_comes_back_byte_for_byte(text_task: TextGeneration, text: str) -> None:
    *ids, end = ids_of(text_task, text)

    assert end == text_task.end_of_text_id
    assert text_task.end_of_text_id not in ids
    assert text_task.tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", [END_OF_TEXT, f"a{END_OF_TEXT}b", END_OF_TEXT * 3])
def test_a_special_token_that_is_spelled_out_is_text(text_task: TextGeneration, text: str) -> None:
    *ids, _ = ids_of(text_task, text)

    assert text_task.end_of_text_id not in ids
    assert text_task.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_vocabulary_has_the_size_asked_for(text_task: TextGeneration) -> None:
    assert text_task.vocab_size <= 400
    assert text_task.stored["input_ids"].dtype == "uint16"
    assert len(ids_of(text_task, CORPUS[0])) < len(CORPUS[0]) / 2


def test_fitting_is_repeatable() -> None:
    spec = TextGenerationSpec(tokenizer=FittedTokenizer(vocab_size=300))
    rows = [{"text": text} for text in CORPUS]

    first, second = spec.fit(rows), spec.fit(iter(rows))

    assert first.tokenizer.to_str() == second.tokenizer.to_str()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("megabytes", "documents"), [(0.001, 1000), (0.45, 1500)])
def test_fitting_reads_the_text_that_is_asked_and_a_sample_for_the_encoder(megabytes: float, documents: int) -> None:
    spec = TextGenerationSpec(tokenizer=FittedTokenizer(vocab_size=300, fit_megabytes=megabytes))
    read: list[int] = []

    def rows() -> Any:
        for number in range(3000):
            read.append(number)
            yield {"text": "x" * 300}

    spec.fit(rows())

    assert len(read) == documents


def test_a_saved_text_task_encodes_the_same(text_task: TextGeneration, tmp_path: Path) -> None:
    text_task.save(tmp_path)

    loaded = load_task(tmp_path)

    assert isinstance(loaded, TextGeneration)
    assert loaded.spec == text_task.spec
    assert loaded.signature() == json.loads((tmp_path / "task.json").read_text())["signature"]
    for text in [*CORPUS, END_OF_TEXT, "\u0000 never seen \U0001f996"]:
        assert ids_of(loaded, text) == ids_of(text_task, text)


def test_a_task_saved_again_from_its_directory_is_the_same(text_task: TextGeneration, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    text_task.save(first)

    load_task(first).save(second)

    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_transformers_tokenizer_gives_the_same_tokens(text_task: TextGeneration, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text_task.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)

    for text in CORPUS:
        assert theirs(text)["input_ids"] == ids_of(text_task, text)[:-1]
        assert theirs.decode(ids_of(text_task, text), skip_special_tokens=True) == text
    assert (theirs.eos_token, theirs.eos_token_id) == (END_OF_TEXT, text_task.end_of_text_id)
    assert len(theirs) == text_task.vocab_size
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert theirs.apply_chat_template(chat, tokenize=False) == "a\nb"


def test_a_given_tokenizer_is_used_unchanged(text_task: TextGeneration, tmp_path: Path) -> None:
    text_task.save(tmp_path)

    given_one = TextGenerationSpec(tokenizer=str(tmp_path), sequence_length=16).fit([])

    assert ids_of(given_one, CORPUS[1]) == ids_of(text_task, CORPUS[1])  # type: ignore[arg-type]


def test_an_incomplete_tokenizer_directory_is_refused_with_what_is_missing(
    text_task: TextGeneration, tmp_path: Path
) -> None:
    with raises(DataError, "file_missing", tmp_path, "tokenizer.json"):
        TextGenerationSpec(tokenizer=str(tmp_path)).fit([])
    text_task.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with raises(DataError, "no_end_of_text", "eos_token"):
        TextGenerationSpec(tokenizer=str(tmp_path)).fit([])


def test_a_network_learns_the_text_and_measures_what_it_trains_on(text_task: TextGeneration) -> None:
    import torch

    from maas_ray.tasks.text.networks import Llama

    torch.manual_seed(0)
    model = Llama(hidden_size=32, layers=1, heads=2).build(text_task)
    ids = np.array((ids_of(text_task, CORPUS[1]) * 4)[:64], dtype=np.uint16).reshape(4, 16)
    batch = text_task.collate({"input_ids": ids})
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = text_task.loss(model, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    with torch.no_grad():
        measured = text_task.metrics(text_task.outcomes(model, batch))
        final = text_task.loss(model, batch).item()

    assert losses[0] == pytest.approx(np.log(text_task.vocab_size), abs=0.3)
    assert losses[-1] < losses[0] / 2
    assert measured["loss"] == pytest.approx(final, rel=1e-5)
    assert measured["perplexity"] == pytest.approx(np.exp(measured["loss"]))


def test_text_outcomes_have_losses_by_row_position_and_byte(text_task: TextGeneration) -> None:
    import torch

    from maas_ray.tasks.text.networks import Llama

    torch.manual_seed(0)
    model = Llama(hidden_size=32, layers=1, heads=2).build(text_task).eval()
    ids = np.array((ids_of(text_task, CORPUS[2]) * 8)[:40], dtype=np.uint16).reshape(1, 40)
    batch = text_task.collate({"input_ids": np.concatenate([ids, ids[:, ::-1]])})

    with torch.no_grad():
        found = text_task.outcomes(model, batch)
        short = text_task.outcomes(model, {"input_ids": batch["input_ids"][:, :5]})

    text = text_task.tokenizer.decode(ids[0, 1:].tolist(), skip_special_tokens=True)
    assert found["bytes"][0] == len(text.encode())
    assert found["position_loss"].shape == short["position_loss"].shape == (2, 16)
    np.testing.assert_allclose(found["position_loss"].sum(1), found["loss"])
    assert found["position_tokens"].sum(1).tolist() == found["tokens"].tolist() == [39, 39]
    assert short["position_tokens"].sum(1).tolist() == [4, 4]
    expected = found["loss"].sum() / np.log(2) / found["bytes"].sum()
    assert text_task.metrics(found)["bits_per_byte"] == pytest.approx(expected)


# --- images: rows ----------------------------------------------------------------------------------


def png(array: Any, mode: str | None = None, format: str = "PNG") -> bytes:
    picture = Image.fromarray(np.asarray(array))
    output = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(output, format)
    return output.getvalue()


RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = RGB[..., 0]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RGB, RGB),
        (GREY, GREY[..., None]),
        (GREY[..., None], GREY[..., None]),
        (png(RGB), RGB),
        (png(GREY), GREY[..., None]),
        (png(RGB, format="BMP"), RGB),
        (png(RGB, "RGBA"), RGB),
        (png(GREY, "LA"), GREY[..., None]),
        (png((GREY > 127).astype(np.uint8) * 255, "1"), ((GREY > 127) * np.uint8(255))[..., None]),
        (png(GREY // 64 * 64, "P"), np.repeat((GREY // 64 * 64)[..., None], 3, axis=2)),
        # With 16 bits per pixel, the high byte is the picture.
        (png(GREY.astype(np.uint16) * 257), GREY[..., None]),
    ],
    ids=["rgb", "grey", "grey3", "png", "png-grey", "bmp", "rgba", "grey-alpha", "1-bit", "palette", "16-bit"],
)
def test_images_of_every_kind_become_uint8(image: Any, expected: np.ndarray) -> None:
    row = ImageClassificationSpec().parse_row({"image": image, "label": 7})

    assert row is not None
    assert row["label"] == "7"
    assert row["image"].dtype == np.uint8
    np.testing.assert_array_equal(row["image"], expected)


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (b"not an image", "invalid_image"),
        (png(RGB)[:-30], "invalid_image"),
        (png(RGB)[:20], "invalid_image"),
        (RGB.astype(np.float32), "wrong_shape"),
        (RGB[None], "wrong_shape"),
        (RGB[..., :2], "wrong_shape"),
        (np.zeros((0, 4, 3), np.uint8), "wrong_shape"),
        (png(GREY.astype(np.float32), format="TIFF"), "unknown_range"),
    ],
    ids=["text", "cut", "header", "float", "batch", "2-channels", "no-pixels", "float-tiff"],
)
def test_a_bad_image_is_malformed_not_fatal(image: Any, code: str) -> None:
    with raises(InvalidError, code):
        ImageClassificationSpec().parse_row({"image": image, "label": "a"})


@pytest.mark.parametrize("row", [{"image": None, "label": "a"}, {"image": b"", "label": "a"}])
@pytest.mark.parametrize("label", ["a", None, ""])
def test_an_image_without_pixels_or_label_is_empty(row: dict[str, Any], label: Any) -> None:
    assert ImageClassificationSpec().parse_row({**row, "label": label}) is None
    assert ImageClassificationSpec().parse_row({"image": RGB, "label": None}) is None


# --- images: features ------------------------------------------------------------------------------


def fitted(images: list[np.ndarray], labels: list[Any] | None = None, **spec: Any) -> ImageClassification:
    labels = labels or [str(place % 2) for place in range(len(images))]
    made = ImageClassificationSpec(**spec)
    rows = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    return made.fit(parsed(made, rows))  # type: ignore[return-value]


def test_labels_size_and_pixel_means_are_fitted_on_the_images() -> None:
    task = fitted([RGB, RGB, np.zeros((5, 5), np.uint8)], ["10", "2", "cat"])

    assert task.features.labels == ["2", "10", "cat"]
    assert task.shape == (3, 6, 8)
    expected = (RGB.reshape(-1, 3).mean(axis=0) / 255 * 2) / 3
    np.testing.assert_allclose(task.features.mean, expected, rtol=1e-6)


@pytest.mark.parametrize(("color", "channels"), [(None, 1), ("rgb", 3), ("grey", 1)])
def test_a_spec_may_set_the_colour(color: Any, channels: int) -> None:
    assert fitted([GREY, GREY], color=color).shape[0] == channels


def test_classification_refuses_a_single_label() -> None:
    with raises(DataError, "too_few_labels", "['a']"):
        fitted([RGB, RGB], ["a", "a"])


@pytest.mark.parametrize(("image", "size"), [(RGB, (6, 8)), (GREY, (6, 8)), (RGB, (3, 4)), (GREY, 12)])
@pytest.mark.parametrize("color", ["rgb", "grey"])
def test_encoding_gives_one_shape_whatever_comes(image: np.ndarray, size: Any, color: str) -> None:
    task = fitted([RGB, GREY], image_size=size, color=color)

    encoded = task.encode(parsed(task.spec, [{"image": image, "label": "0"}, {"image": GREY.T, "label": "1"}]))

    assert encoded["pixel_values"].shape == (2, *task.shape)
    assert encoded["pixel_values"].dtype == np.uint8
    assert encoded["label"].tolist() == [0, 1]
    if image is RGB and size == (6, 8) and color == "rgb":
        np.testing.assert_array_equal(encoded["pixel_values"][0], RGB.transpose(2, 0, 1))


def test_a_label_unknown_to_training_is_malformed() -> None:
    with raises(UnlearntError, "not_in_training", "'x'"):
        fitted([RGB, RGB]).encode([{"image": RGB, "label": "x"}])


def test_a_saved_image_task_and_network_answer_the_same(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from maas_ray.tasks.vision.networks import Cnn

    task = fitted([RGB, GREY, RGB], ["a", "b", "a"])
    network = Cnn(channels=(4, 8), hidden_size=8)
    model = network.build(task).eval()
    task.save(tmp_path)
    network.write_config(model, task, tmp_path)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    request = {"image": np.stack([RGB, 255 - RGB])}

    loaded = load_task(tmp_path)
    answer = loaded.predict(loaded.load_model(tmp_path), request)

    expected = task.predict(model, request)
    np.testing.assert_array_equal(answer["scores"], expected["scores"])
    assert answer["label"].tolist() == expected["label"].tolist()
    assert answer["scores"].sum(axis=1) == pytest.approx([1, 1])
    stored = torch.from_numpy(task.encode([{"image": RGB}])["pixel_values"])
    np.testing.assert_allclose(model(stored).softmax(-1)[0].detach().numpy(), expected["scores"][0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 8, 3), (1, 6, 8), (1, 6, 8, 4), (1, 3, 6, 8)])
def test_a_request_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with raises(RequestError, "invalid_value", list(shape)):
        fitted([RGB, RGB]).predict(lambda **_: None, {"image": np.zeros(shape, np.uint8)})


@pytest.mark.parametrize("text", ["", "{", "{}", '{"task": {"type": "other"}, "features": {}}', "[]"])
def test_a_damaged_task_file_is_corrupt(tmp_path: Path, text: str) -> None:
    (tmp_path / "task.json").write_text(text)

    with raises(CorruptError, "unreadable_task", "task.json"):
        load_task(tmp_path)
    with pytest.raises(CorruptError):
        load_task(tmp_path / "none")
