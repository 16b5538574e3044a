import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maas_ray.data.reading import Inspected, Part, Raw, inspect, read
from maas_ray.data.sources import (
    AnySource,
    AudioFolderSource,
    ImageFolderSource,
    JsonlSource,
    ParquetSource,
    TextSource,
    list_files,
)
from maas_ray.errors import DataError
from tests.support.errors import raises
from tests.support.sources import problem_of

IMAGE = ("image", "label")


def look(source: AnySource, columns: tuple[str, ...] = ("text",)) -> Inspected:
    (file,) = list_files(source)
    return inspect(source, file, columns)


def everything(source: AnySource, columns: tuple[str, ...] = ("text",)) -> list[Raw]:
    found = look(source, columns)
    assert not found.problem
    rows = list(read(Part(source, found, range(len(found.groups)) if found.groups else None), columns))
    assert sum(row.rows for row in rows) == found.rows
    return rows


def png(value: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(data, "PNG")
    return data.getvalue()


def test_a_text_file_is_read_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (row,) = everything(TextSource(path=str(tmp_path)))
    assert (row.row, row.excerpt, row.path) == ({"text": b"caf\xe9"}, b"caf\xe9", str(tmp_path / "a.txt"))


def test_jsonl_gives_every_line_or_its_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        b'{"body": "one"}',
        b"",
        b'{"body": ',
        b"[1]",
        b'{"other": 1}',
        b'{"body": "\xff"}',
        b"  ",
        b'{"body": null}',
    ]
    path.write_bytes(b"\n".join(lines) + b"\n" + b'{"body": "last"}')
    rows = everything(JsonlSource(path=str(path), text="body"))
    assert [(row.position, row.row, row.error) for row in rows] == [
        (1, {"text": "one"}, ""),
        (3, None, "not JSON: Expecting value"),
        (4, None, "a JSON list, not an object"),
        (5, {"text": None}, ""),
        (6, None, "'utf-8' codec can't decode byte 0xff in position 10: invalid start byte"),
        (8, {"text": None}, ""),
        (9, {"text": "last"}, ""),
    ]
    assert rows[1].excerpt == b'{"body": \n'


def test_columns_are_mapped_to_the_names_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(b"RIFF")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"path": 1, "words": "a b", "file": "clip.wav"}\n')
    source = JsonlSource(path=str(path), columns={"transcript": "words", "audio": "file"})
    (row,) = everything(source, ("path", "transcript", "audio"))
    assert row.row == {"path": 1, "transcript": "a b", "audio": b"RIFF"}
    assert "columns" not in JsonlSource(path=str(path)).identity()
    before = look(source, ("audio",)).sha256
    (tmp_path / "clip.wav").write_bytes(b"RIFX")
    assert look(source, ("audio",)).sha256 != before


def test_a_kept_column_is_still_a_column_of_the_task(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"y": 1, "country": "fr", "x": 2}\n')
    (row,) = everything(JsonlSource(path=str(path)), ("y", "*", "keep/country", "keep/y"))
    assert row.row == {"y": 1, "*": {"country": "fr", "x": 2}, "keep/country": "fr", "keep/y": 1}
    problem = problem_of(JsonlSource(path=str(path)), ("y", "keep/city"))
    assert "no column 'city' (named by `keep`); it has: y, country, x" in problem


def test_json_that_is_nested_too_deeply_is_an_error_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "x"}\n' + "[" * 100_000 + "\n")
    first, second = everything(JsonlSource(path=str(path)))
    assert first.row == {"text": "x"}
    assert second.row is None
    assert "recursion" in second.error


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_missing_column_is_found_by_the_inspection(tmp_path: Path, kind: str) -> None:
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_text('broken\n{"title": "t", "body": "b"}\n')
        source: AnySource = JsonlSource(path=str(tmp_path))
    else:
        pq.write_table(pa.table({"title": ["t"], "body": ["b"]}), tmp_path / "a.parquet")
        source = ParquetSource(path=str(tmp_path))
    assert problem_of(source, ("text",)).endswith(f"a.{kind} has no column 'text' (set `text`); it has: title, body.")


def test_parquet_rows_have_their_position_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": [f"row {n}" for n in range(10)]}), path, row_group_size=4)
    source = ParquetSource(path=str(path), text="body")
    found = look(source)
    assert (found.rows, found.groups) == (10, (4, 4, 2))
    rows = list(read(Part(source, found, range(1, 3)), ("text",)))
    assert [(row.position, row.row) for row in rows] == [(n, {"text": f"row {n}"}) for n in range(4, 10)]


def test_a_damaged_row_group_is_quarantined_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"row {n} " + "x" * 100 for n in range(30)]})
    pq.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.index(b"row 15")] ^= 1
    path.write_bytes(data)
    rows = everything(ParquetSource(path=str(path)))
    assert [row.position for row in rows if row.row] == [*range(10), *range(20, 30)]
    (broken,) = [row for row in rows if not row.row]
    assert (broken.position, broken.rows) == (10, 10)
    assert broken.error.startswith("row group 1 is not readable: ")


def test_a_file_that_is_not_parquet_is_one_broken_row(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    (row,) = everything(ParquetSource(path=str(tmp_path)))
    assert row.row is None
    assert row.error.startswith("not readable Parquet: ")


def test_image_folders_label_by_directory(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/2.png", "stray.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(7))
    source = ImageFolderSource(path=str(tmp_path))
    rows = [row for file in list_files(source) for row in read(Part(source, inspect(source, file, IMAGE)), IMAGE)]
    assert [row.row and row.row["label"] for row in rows] == [None, "cat", "dog"]
    assert rows[0].error == "is not in a directory that could be its label; give the directory above as `path`"
    assert rows[1].row == {"image": png(7), "label": "cat"}


def test_images_can_be_paths_base64_bytes_or_structs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(png(1))
    text = base64.b64encode(png(1)).decode()

    def write(name: str, value: Any) -> str:
        path = tmp_path / name
        if name.endswith("jsonl"):
            path.write_text(json.dumps({"img": value, "y": 3}) + "\n")
        else:
            pq.write_table(pa.table({"img": [value], "y": [3]}), path)
        return str(path)

    given: list[AnySource] = [
        JsonlSource(path=write("a.jsonl", "images/1.png"), image="img", label="y"),
        JsonlSource(path=write("b.jsonl", text), image="img", label="y", encoding="base64"),
        JsonlSource(path=write("g.jsonl", f"{text[:40]}\n{text[40:]}\n"), image="img", label="y", encoding="base64"),
        JsonlSource(path=write("h.jsonl", f"data:image/png;base64,{text}"), image="img", label="y", encoding="base64"),
        JsonlSource(path=write("c.jsonl", str(tmp_path / "images/1.png")), image="img", label="y"),
        ParquetSource(path=write("d.parquet", "images/1.png"), image="img", label="y"),
        ParquetSource(path=write("e.parquet", png(1)), image="img", label="y"),
        ParquetSource(path=write("f.parquet", {"bytes": png(1), "path": "x.png"}), image="img", label="y"),
    ]
    for source in given:
        (row,) = everything(source, IMAGE)
        assert row.row == {"image": png(1), "label": 3}, source


def test_missing_images_and_invalid_base64_are_errors_of_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"image": "nowhere.png", "label": 1}\n{"image": 3, "label": 1}\n{"image": null, "label": 1}\n')
    missing, number, null = everything(JsonlSource(path=str(path)), IMAGE)
    assert missing.error == f"{tmp_path}/nowhere.png does not exist."
    assert number.error == "image is a int; give bytes or a string"
    assert null.row == {"image": None, "label": 1}
    row, *_ = everything(JsonlSource(path=str(path), encoding="base64"), IMAGE)
    assert row.error.startswith("image is not base64: ")


def test_the_digest_of_a_table_of_paths_covers_the_images(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "1.png", "label": 1}\n')
    source = JsonlSource(path=str(tmp_path / "a.jsonl"))
    seen = set()
    for content in (None, png(1), png(2)):
        if content:
            (tmp_path / "1.png").write_bytes(content)
        seen.add(look(source, IMAGE).sha256)
    assert len(seen) == 3


def test_a_file_that_changes_after_its_inspection_stops_the_run(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    source = TextSource(path=str(path))
    found = look(source)
    path.write_text("after!!")
    with raises(DataError, "input_changed", "a.txt"):
        list(read(Part(source, found), ("text",)))


def test_a_file_that_cannot_be_opened_is_a_problem_of_the_inspection(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    source = TextSource(path=str(path))
    (file,) = list_files(source)
    path.unlink()
    assert "cannot be read" in inspect(source, file, ("text",)).problem


def test_the_transcript_of_a_clip_is_beside_it(tmp_path: Path) -> None:
    for name, content in {"a/x.wav": b"RIFF", "a/x.txt": b"one\n", "y.flac": b"fLaC", "notes.md": b"no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    source = AudioFolderSource(path=str(tmp_path))
    columns = ("audio", "transcript")
    files = list_files(source)
    looks = [inspect(source, file, columns) for file in files]
    rows = [row for found in looks for row in read(Part(source, found), columns)]
    assert [row.row for row in rows] == [{"audio": b"RIFF", "transcript": b"one\n"}, None]
    assert rows[1].error == "no transcript beside it: y.txt does not exist"

    (tmp_path / "a/x.txt").write_bytes(b"two\n")
    with raises(DataError, "input_changed"):
        list(read(Part(source, looks[0]), columns))
    assert inspect(source, files[0], columns).sha256 != looks[0].sha256
