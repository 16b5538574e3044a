"""Files as in real directories: cut off, damaged, mislabelled, in other encodings; and special files."""

import io
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from maas_ray.data.names import SPLITS
from maas_ray.data.pipeline.objects import packed
from maas_ray.data.pipeline.read_rows import Reading, read_rows
from maas_ray.data.pipeline.rows import paths_of
from maas_ray.data.reading import Part, Raw
from maas_ray.data.sources import (
    AnySource,
    JsonlSource,
    TextSource,
    WebDatasetSource,
    base,
    jsonl,
    list_files,
    webdataset,
)
from maas_ray.data.splits.spec import Splits
from maas_ray.errors import DataError, SpecError
from maas_ray.tasks import TaskSpec
from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognitionSpec
from maas_ray.tasks.vision.classification import ImageClassificationSpec
from tests.support.errors import raises
from tests.support.sources import problem_of, source
from tests.unit.data.sources.test_formats import ROWS, everything, ipc, looks, tar, tar_of


def told(rows: list[Raw]) -> list[Any]:
    return [raw.error or raw.row for raw in rows]


# --- Arrow and Parquet -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_that_is_cut_off_gives_the_batches_before_the_cut(tmp_path: Path, stream: bool) -> None:
    path = tmp_path / "a.arrow"
    ipc(path, stream=stream)
    whole, of = path.read_bytes(), source(format="arrow", path=str(path))
    (found,) = looks(of)
    for end in range(found.places[2], found.places[4] + 1, 8):
        path.write_bytes(whole[:end])
        *good, last = everything(of)
        batches = sum(end >= place for place in found.places) - 1
        assert [raw.row for raw in good] == ROWS[: 7 * batches]
        assert "cut off" in last.error
        assert last.position == 7 * batches


def test_a_batch_whose_offsets_are_damaged_is_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    ipc(path, stream=True)
    of = source(format="arrow", path=str(path))
    data = bytearray(path.read_bytes())
    offsets = np.cumsum([0, *[len(row["text"].encode()) for row in ROWS[7:14]]]).astype("<i4").tobytes()
    data[data.index(offsets) + 8] ^= 0xF0
    path.write_bytes(data)
    rows = everything(of)
    (broken,) = [raw for raw in rows if raw.row is None]
    assert (broken.position, broken.rows) == (7, 7)
    assert "a record batch is not readable" in broken.error
    assert [raw.row for raw in rows if raw.row] == ROWS[:7] + ROWS[14:]


def test_a_file_that_is_not_arrow_or_parquet_is_one_broken_row(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for kind, content in [
        ("arrow", b"no arrow at all, of some length"),
        ("arrow", b""),
        ("arrow", b"ARROW1\0\0"),
        ("parquet", whole[: len(whole) // 2]),
        ("parquet", b""),
    ]:
        path = tmp_path / f"a.{kind}"
        path.write_bytes(content)
        (row,) = everything(source(format=kind, path=str(path)))
        assert row.error.startswith(f"not readable {kind.capitalize()}: "), content


def test_a_directory_of_save_to_disk_is_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        directory = tmp_path / split
        directory.mkdir()
        ipc(directory / "data-00000-of-00001.arrow", stream=True)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (directory / "state.json").write_text(json.dumps(state))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with raises(DataError, "dataset_dict", "{format: arrow, path: ", "/test, split: test}"):
        list_files(source(format="arrow", path=str(tmp_path)))
    rows = everything(source(format="arrow", path=str(tmp_path / "test"), split="test"))
    assert [(raw.row, raw.split) for raw in rows] == [(row, SPLITS.index("test")) for row in ROWS]
    (tmp_path / "test/state.json").write_text(json.dumps(state | {"_indices_files": ["x"]}))
    with raises(DataError, "dataset_selection", "flatten_indices"):
        list_files(source(format="arrow", path=str(tmp_path / "test")))
    (tmp_path / "test/state.json").write_text(json.dumps({"_data_files": [{"filename": "data-1.arrow"}]}))
    with raises(DataError, "file_missing", "data-1.arrow"):
        list_files(source(format="arrow", path=str(tmp_path / "test")))


def test_images_of_hugging_face_are_structs(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": b"one", "path": None}, "label": 1}, {"image": {"bytes": None, "path": "x"}, "label": 2}]
    (tmp_path / "x").write_bytes(b"two")
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    found = everything(source(format="arrow", path=str(tmp_path)), ("image", "label"))
    assert told(found) == [{"image": b"one", "label": 1}, {"image": b"two", "label": 2}]


# --- tar shards ------------------------------------------------------------------------------------


def shard(tmp_path: Path, content: bytes, **options: Any) -> AnySource:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    return source(format="webdataset", path=str(path), **options)


@pytest.mark.parametrize("group", [300, 1 << 30])
def test_a_tar_that_is_cut_off_gives_the_samples_before_the_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(webdataset, "_GROUP_BYTES", group)
    data = tar()
    for end in (700, 5 * 2048, 5 * 2048 + 512, 5 * 2048 + 600, 5 * 2048 + 1024, 5 * 2048 + 1300, 50 * 2048, 512, 100):
        *good, last = everything(shard(tmp_path, data[:end], label="label"))
        assert "cut off" in last.error, end
        assert [raw.row for raw in good] == ROWS[: len(good)]
        assert len(good) >= end // 2048 - 1


def test_a_damaged_header_ends_a_tar_with_an_error(tmp_path: Path) -> None:
    data = bytearray(tar())
    data[20 * 2048 + 3] ^= 1
    *good, last = everything(shard(tmp_path, bytes(data), label="label"))
    assert [raw.row for raw in good] == ROWS[:19]
    assert "cut off or damaged: bad checksum" in last.error
    *good, last = everything(shard(tmp_path, tar() + tar(), label="label"))
    assert "there is more after the archive's end mark" in last.error
    assert len(good) == 49


def test_samples_are_those_of_the_webdataset_library(tmp_path: Path) -> None:
    members = [
        ("__meta__/x.json", b"{}"),
        ("README", b"no sample"),
        ("d.e/one.left.JPG", b"L"),
        ("d.e/one.png", b"P"),
        ("d.e/one.cls", b"7\n"),
        ("d.e/one.json", b'{"caption": "a cat", "n": {"m": 1}}'),
        ("two.webp", b"W"),
        ("two.cls", b"x"),
        ("three.jpg", b"J"),
        ("four.jpg", b"J"),
        ("four.jpg", b"K"),
        ("four.cls", b"1"),
        ("five.jpg", b"J"),
        ("five.cls", b"1"),
    ]
    of = shard(tmp_path, tar_of(members))
    assert told(everything(of, ("image", "label"))) == [
        {"image": b"P", "label": 7},
        "two.cls cannot be read: invalid literal for int() with base 10: b'x'",
        {"image": b"J", "label": None},
        "the sample four has .jpg twice",
        {"image": b"J", "label": 1},
    ]
    of = shard(tmp_path, tar_of(members), image="left.jpg", columns={"text": "caption", "name": "__key__"})
    row, *_ = everything(of, ("image", "text", "name", "*"))
    assert row.row == {
        "image": b"L",
        "text": "a cat",
        "name": "d.e/one",
        "*": {"png": b"P", "cls": 7, "json": {"caption": "a cat", "n": {"m": 1}}, "n": {"m": 1}},
    }
    # Every sample may have what others leave out.
    assert "it has: caption, n, __key__, left.jpg, png, cls, json, jpg." in problem_of(of, ("stars",))


def test_an_empty_tar_has_no_rows(tmp_path: Path) -> None:
    assert everything(shard(tmp_path, tar_of([])), ("text",)) == []
    (row,) = everything(shard(tmp_path, b""), ("text",))
    assert "empty file" in row.error


# --- encodings, and sizes --------------------------------------------------------------------------


def test_json_lines_in_utf16_are_quarantined_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    of = JsonlSource(path=str(path))
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r')
    assert told(everything(of, ("text",))) == [{"text": "a"}, {"text": "b"}]
    path.write_bytes('{"text": "a"}\n{"text": "b"}\n'.encode("utf-16"))
    (row,) = everything(of, ("text",))
    assert "the file is UTF-16; convert it: iconv" in row.error


def test_a_row_that_is_too_large_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_BYTES", 3 << 20)
    monkeypatch.setattr(jsonl, "_GROUP_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "a"}\n')
        file.write(b'{"text": "' + b"x" * (8 << 20) + b'"}\n')
        file.write(b'{"text": "b"}\n')
        file.write(b"y" * (4 << 20))
    first, second, third, last = everything(JsonlSource(path=str(path)), ("text",))
    assert (first.row, third.row, third.position) == ({"text": "a"}, {"text": "b"}, 3)
    assert second.error == last.error == "a line of more than 3 MB"
    assert len(second.excerpt) <= base.EXCERPT_BYTES

    monkeypatch.setattr("maas_ray.data.sources.files.MAX_BYTES", 1 << 20)
    monkeypatch.setattr("maas_ray.data.sources.text.MAX_BYTES", 1 << 20)
    monkeypatch.setattr(webdataset, "MAX_BYTES", 1 << 20)
    (row,) = everything(TextSource(path=str(path)), ("text",))
    assert "larger than the 1 MB of a row" in row.error
    (row, _) = everything(shard(tmp_path, tar_of([("a.txt", bytes(2 << 20)), ("b.txt", b"")])), ("text",))
    assert "a.txt has 2 MB, more than the 1 MB of a row" in row.error
    (tmp_path / "t.jsonl").write_text('{"image": "a.jsonl", "label": 1}\n{"image": "/dev/zero", "label": 1}\n')
    one, two = everything(JsonlSource(path=str(tmp_path / "t.jsonl")), ("image", "label"))
    assert "has 13 MB, more than the 1 MB of a row" in one.error
    assert two.error == "/dev/zero is not a regular file"


# --- what is no file -------------------------------------------------------------------------------


def test_odd_names_are_listed_and_special_files_are_not(tmp_path: Path) -> None:
    names = [b"with space.txt", b"new\nline.txt", b"caf\xe9.txt", "日本.txt".encode(), b"a%20b#c?.txt", b"[x]*.txt"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    (tmp_path / "empty.txt").touch()
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.txt"))
        (tmp_path / "null.txt").symlink_to("/dev/null")
        (tmp_path / "to-pipe.txt").symlink_to(tmp_path / "pipe.txt")
        (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
        (tmp_path / "loop").symlink_to(tmp_path)
        rows = everything(TextSource(path=str(tmp_path)), ("text",))
        assert sorted(raw.row["text"] for raw in rows if raw.row) == sorted([*names, b""])
        assert len(list_files(TextSource(path=f"{tmp_path}/**/*.txt"))) == len(names) + 1
        for name in ("pipe.txt", "socket.txt", "null.txt"):
            with raises(DataError, "not_a_file", name):
                list_files(TextSource(path=str(tmp_path / name)))


def test_many_files_are_listed_in_seconds(tmp_path: Path) -> None:
    for directory in range(10):
        (tmp_path / f"{directory}").mkdir()
        for name in range(1000):
            os.close(os.open(f"{tmp_path}/{directory}/{name}.txt", os.O_CREAT | os.O_WRONLY))
    started = time.monotonic()
    assert len(list_files(TextSource(path=str(tmp_path), include=("*.txt",), exclude=("x*",)))) == 10_000
    assert time.monotonic() - started < 10


# --- images and audio ------------------------------------------------------------------------------


def fates_of(task: TaskSpec, of: AnySource) -> dict[str, str]:
    """Files by name, with what became of each: kept, or the error."""
    parts = [Part(of, found) for found in looks(of, task.columns)]
    reading = Reading(task, Splits(validation=0, test=0))
    (table,) = read_rows(packed(enumerate(parts)), reading)
    columns = (values.to_pylist() for values in (paths_of(table), table["error"], table["fate"]))
    return {Path(path).name: error or fate for path, error, fate in zip(*columns, strict=True)}


def test_the_content_of_an_image_decides_and_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    image = Image.fromarray(np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3))
    for name, kind in {"a.jpg": "JPEG", "b.png": "PNG", "c.webp": "WEBP", "png.jpg": "PNG"}.items():
        image.save(tmp_path / "cat" / name, kind)
    whole = (tmp_path / "cat/b.png").read_bytes()
    for name, content in {"text.png": b"no image", "zero.png": b"", "cut.png": whole[: len(whole) // 2]}.items():
        (tmp_path / "cat" / name).write_bytes(content)
    found = fates_of(ImageClassificationSpec(), source(format="image-folder", path=str(tmp_path)))
    assert [name for name, error in found.items() if not error] == ["a.jpg", "b.png", "c.webp", "png.jpg"]
    assert found["text.png"].startswith("not an image")
    assert found["cut.png"].startswith("not a readable image")
    assert found["zero.png"]


def test_the_content_of_audio_decides_and_not_its_name(tmp_path: Path) -> None:
    sound = np.sin(np.arange(8000) * 0.2).astype(np.float32)
    for name, kind in {"a.wav": "WAV", "b.flac": "FLAC", "c.mp3": "MP3", "d.ogg": "OGG", "flac.wav": "FLAC"}.items():
        data = io.BytesIO()
        soundfile.write(data, sound, 16_000, format=kind)
        (tmp_path / name).write_bytes(data.getvalue())
    for name, content in {"text.wav": b"no sound", "zero.flac": b""}.items():
        (tmp_path / name).write_bytes(content)
    for path in list(tmp_path.iterdir()):
        path.with_suffix(".txt").write_text("hello")
    found = fates_of(AutomaticSpeechRecognitionSpec(), source(format="audio-folder", path=str(tmp_path)))
    assert [name for name, error in found.items() if not error] == ["a.wav", "b.flac", "c.mp3", "d.ogg", "flac.wav"]
    assert found["text.wav"]
    assert found["zero.flac"]


# --- weights and splits ----------------------------------------------------------------------------


def test_defaults_of_weight_and_split_do_not_change_the_identity(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    plain = JsonlSource(path=str(tmp_path))
    assert not {"weight", "split", "path", "include", "exclude"} & plain.identity().keys()
    given = JsonlSource(path=str(tmp_path), weight=0.5, split="validation")
    assert given.identity() == plain.identity() | {"weight": 0.5, "split": "validation"}
    assert {raw.split for raw in everything(plain)} == {None}
    assert {raw.split for raw in everything(given)} == {1}
    for change, code, *values in [
        ({"weight": 0}, "greater_than", "weight: ", "found 0"),
        ({"weight": float("inf")}, "less_than_equal", "weight: "),
        ({"split": "dev"}, "literal_error", "split: ", "'train', 'validation' or 'test'"),
    ]:
        with raises(SpecError, code, *values):
            WebDatasetSource.parse({"path": "x"} | change)
