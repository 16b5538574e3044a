"""Files that are one JSON array of rows: the rows are those of Python's `json`, however the file is cut or broken."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from maas_ray.data.damage import weighed
from maas_ray.data.reading import Part, inspect, read
from maas_ray.data.sources import json_array, jsonl, list_files
from tests.support.sources import raws, rows_of, source

TEXTS = ['a"b', "\\", "[x]", "}{,", "é\u2028", "", '\\"', "😀", "], ["]


def of(tmp_path: Path, content: str | bytes, name: str = "rows.json") -> Any:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return source(format="jsonl", path=f"{tmp_path}/{name}")


@pytest.mark.parametrize("stretch", [3, 1 << 18])
def test_the_rows_of_an_array_are_those_of_the_json_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stretch: int
) -> None:
    monkeypatch.setattr(json_array, "_STRETCH", stretch)
    monkeypatch.setattr(jsonl, "_GROUP_BYTES", 64)
    drawn = random.Random(stretch)
    for _ in range(50):
        texts = ["".join(drawn.choices(TEXTS, k=3)) for _ in range(drawn.randrange(1, 9))]
        rows = [{"text": text, "n": [drawn.random(), {text: [1, {}]}, float("inf"), 10**30]} for text in texts]
        indent, plain = drawn.choice([None, 1]), drawn.random() < 0.5
        before, after = drawn.choice(["", "\ufeff", "\n  "]), drawn.choice(["", " \r\n"])
        array = of(tmp_path, before + json.dumps(rows, indent=indent, ensure_ascii=plain) + after)

        assert rows_of(array, ("text", "n")) == rows

        file = inspect(array, list_files(array)[0], ("text", "n"))
        assert len(file.groups) > 1 or len(rows) == 1
        read_apart = [
            raw
            for group in range(len(file.groups))
            for raw in read(Part(array, file, range(group, group + 1)), ("text", "n"))
        ]
        assert [raw.row for raw in read_apart] == rows
        assert [raw.position for raw in read_apart] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", []),
        ("[\n]\n", []),
        ('[{"text": "a"},]', ["a"]),
        ('[{"text": "a"}, {"text": b}, {"text": "c"}]', ["a", "not JSON: Expecting value", "c"]),
        ('[{"text": "a"} {"text": "b"}, {"text": "c"}]', ["not JSON: Extra data", "c"]),
        ('[{"text": "a"]}, {"text": "c"}]', ["not JSON: Expecting ',' delimiter", "c"]),
        (
            '[{"text": "a"}, 1, null, ["x"]]',
            ["a", "a JSON int, not an object", "a JSON NoneType, not an object", "a JSON list, not an object"],
        ),
    ],
)
def test_a_broken_element_costs_itself_alone(tmp_path: Path, content: str, expected: list[str]) -> None:
    assert [
        row["text"] if isinstance(row, dict) else row for row in rows_of(of(tmp_path, content), ("text",))
    ] == expected


@pytest.mark.parametrize("end", ["", ",", ', {"text": "c", "x": [1', ', {"text": "c\\'])
def test_an_array_that_was_cut_off_has_the_rows_before_the_cut(tmp_path: Path, end: str) -> None:
    *rows, last = raws(of(tmp_path, '[{"text": "a"}, {"text": "b"}' + end), ("text",))
    whole = ["a", "b"] if end else ["a"]  # without a comma the last one may go on
    assert [raw.row and raw.row["text"] for raw in rows] == whole
    assert last.rest
    assert last.error.startswith("the array does not end")


def test_a_packed_array_is_read_up_to_its_damage(tmp_path: Path) -> None:
    drawn = random.Random(0)
    content = gzip.compress(json.dumps([{"text": str(drawn.random())} for _ in range(5000)]).encode())
    assert len(rows_of(of(tmp_path, content, "a.json.gz"), ("text",))) == 5000
    *rows, last = raws(of(tmp_path, content[: len(content) // 2], "b.json.gz"), ("text",))
    assert 2000 < len(rows) < 3000
    assert all(raw.row for raw in rows)
    assert last.error.startswith("no whole gzip file")


def test_arrays_on_several_lines_are_not_taken_for_one(tmp_path: Path) -> None:
    lines = of(tmp_path, "\n".join([json.dumps([{"role": "user", "content": "hi"}])] * 50))
    (file,) = weighed([inspect(lines, list_files(lines)[0], ("role",))])
    assert "the array ends, but the file goes on" in file.damage
    assert file.lost == 50  # 49 lines of 36 bytes, weighed by the 35 bytes that were read


def test_a_row_that_is_too_large_is_the_rest_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "MAX_BYTES", 1 << 20)
    large = of(tmp_path, '[{"text": "a"}, {"text": "' + "x" * (3 << 20) + '"}, {"text": "b"}]')
    first, rest = raws(large, ("text",))
    assert first.row == {"text": "a"}
    assert (rest.error, rest.rest) == ("a row of more than 1 MB", True)


def test_a_list_on_the_first_line_is_not_an_array_of_rows(tmp_path: Path) -> None:
    assert rows_of(of(tmp_path, '["a", "b"]\n{"text": "c"}\n'), ("text",)) == [
        "a JSON list, not an object",
        {"text": "c"},
    ]
