"""CSV files: every row or its error, with the line it begins at, however the file is cut."""

import bz2
import csv
import gzip
import hashlib
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maas_ray.data.reading import Inspected, Part, Raw, inspect, read
from maas_ray.data.sources import CsvSource, JsonlSource, ParquetSource, list_files
from maas_ray.data.sources.csv import parse as delimited
from maas_ray.data.sources.csv import source as csv_format
from maas_ray.data.sources.csv.parse import Place, Record, Stretch
from maas_ray.data.sources.csv.scan import scan
from maas_ray.errors import SpecError
from maas_ray.tasks.rows import REST
from tests.support.errors import raises
from tests.support.sources import problem_of


def look(source: Any, columns: tuple[str, ...] = ("a", "b")) -> Inspected:
    (file,) = list_files(source)
    return inspect(source, file, columns)


def everything(source: Any, columns: tuple[str, ...] = ("a", "b")) -> list[Raw]:
    found = look(source, columns)
    assert not found.problem
    groups = [range(place, place + 1) for place in range(len(found.groups))] or [None]
    rows = [raw for group in groups for raw in read(Part(source, found, group), columns)]
    assert len(rows) == found.rows
    return rows


def told(rows: list[Raw]) -> list[tuple[int, Any]]:
    return [(raw.position, raw.error or raw.row) for raw in rows]


def test_rows_come_with_the_line_they_begin_at_or_with_their_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'\xef\xbb\xbfa,b\r\n1,"two\nlines"\r\n\r\n3\n4,"say ""no"""\n5,"open\n6,six\n7,\xff\n8,NA\n9,"x"y\n10,  \n'
        b'11,five" wide\n12,"never closed\n13,x'
    )
    rows = everything(CsvSource(path=str(path)))
    assert told(rows) == [
        (2, {"a": "1", "b": "two\nlines"}),
        (5, "1 fields, but 2 columns"),
        (6, {"a": "4", "b": 'say "no"'}),
        (7, "not utf-8: byte 0xff at 2"),  # the quote that line 7 opens runs into line 9, which is none
        (8, {"a": "6", "b": "six"}),
        (9, "not utf-8: byte 0xff at 2"),
        (10, {"a": "8", "b": None}),
        (11, "not CSV: ',' expected after '\"'"),
        (12, {"a": "10", "b": None}),
        (13, {"a": "11", "b": 'five" wide'}),
        (14, "not CSV: unexpected end of data"),
        (15, {"a": "13", "b": "x"}),
    ]
    assert rows[0].excerpt == b'1,"two\nlines"\r\n'
    assert rows[3].excerpt == b'5,"open\n'


@given(
    rows=st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2)),
    delimiter=st.sampled_from(",;|\t"),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_csv_is_read_the_same_however_the_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], delimiter: str, end: str
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    path.write_bytes(text.getvalue().encode())
    source = CsvSource(path=str(path), delimiter=delimiter, missing=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_format, "_GROUP_BYTES", 20)
        found = everything(source)
        assert len(look(source).groups) >= (len(text.getvalue().encode()) > 200)
    assert [raw.row for raw in found] == [{"a": a, "b": b} for a, b in rows]


_SIGNS = [
    b"a",
    b"1",
    b" ",
    b",",
    b",",
    b";",
    b'"',
    b'"',
    b"'",
    b"\n",
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xa9",
    "é".encode(),
    "\u2028".encode(),
    "\U0001f600".encode(),
    b"\xef\xbb\xbf",
    b'"x,y"',
    b'"a\nb"',
    b'""',
]
_PLAIN = [b"abc", b",", b",", b"\n", b"\r\n", b'"quoted, ""twice"""', b'"over\nlines"', "ü".encode()]
_NEARLY = [
    *_PLAIN,
    b'a "b\nc",\n',
    b'x"y\nz"\n',
    b'"a"b',
    b'"a',
    b'a "b"\n',
    b'"a" \n',
    b'"a"\r',
    b'"a"\r\n',
    b"\r",
    b"\xff",
]


@settings(max_examples=1500, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.lists(st.sampled_from(_SIGNS), max_size=120).map(b"".join),
        st.lists(st.sampled_from(_PLAIN), max_size=120).map(b"".join),
        st.lists(st.sampled_from(_NEARLY), max_size=60).map(b"".join),
    ),
    delimiter=st.sampled_from(",,,,,; "),
    quote=st.sampled_from(['"', '"', '"', '"', '"', "'", ""]),
    charset=st.sampled_from(["utf-8", "utf-8", "utf-8", "latin-1", "latin-1", "cp1252", "ascii", "shift_jis", "utf-7"]),
    stretch=st.integers(2, 300),
    size=st.integers(1, 80),
)
@example(b'1,2\n"a",x"y\nz"\n', ",", '"', "utf-8", 300, 80)
def test_the_scan_finds_the_rows_of_a_careful_parser(
    content: bytes, delimiter: str, quote: str, charset: str, stretch: int, size: int
) -> None:
    source = CsvSource(path="x.csv", delimiter=delimiter, quote=quote, charset=charset, names=("a", "b"))

    def found() -> tuple[list[Record], list[Stretch], str]:
        digest = hashlib.sha256()
        stretches = list(delimited.stretches(source.dialect("x.csv"), io.BytesIO(content), Place(), size, digest))
        return list(delimited.records(source.dialect("x.csv"), io.BytesIO(content))), stretches, digest.hexdigest()

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("STRETCH", stretch), ("PATIENCE", 2)):
            patch.setattr(delimited, f"_MAX_{name}", value)
            patch.setattr(delimited, f"_MIN_{name}", min(value, 30) // 2)
        patch.setattr(delimited, "_READ_BYTES", 5)
        scanned = found()
        patch.setattr(delimited, "scannable", lambda *_: False)
        careful = found()
    assert scanned == careful
    assert scanned[2] == hashlib.sha256(content).hexdigest()
    records, stretches, _ = scanned
    assert sum(some.rows for some in stretches) == len(records)
    for some in stretches:  # a file may be cut there
        assert some.start in [record.start for record in records]


def test_plain_rows_are_counted_without_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("parsed")

    content = b'1,"two\nlines"\r\n\r\n\xc3\xa9,"say ""no"""\n' * 9
    assert scan(content, "utf-8", ",", '"').end == len(content)
    rows = scan(content + b'3,x"y\n4,5\n', "utf-8", ",", '"')
    assert (len(rows.starts), rows.end, rows.line_count, rows.plain) == (18, len(content), 36, False)
    monkeypatch.setattr(delimited, "_parsed", refuse)
    source = CsvSource(path="x.csv", names=("a", "b"))
    (found,) = delimited.stretches(source.dialect("x.csv"), io.BytesIO(content), Place(7, 1), 1 << 20, hashlib.sha256())
    assert found == Stretch(Place(7, 1), 18)


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
def test_a_compressed_file_has_the_same_rows_and_digest(tmp_path: Path, suffix: str) -> None:
    content = b"a\tb\n1\tx\n2\t\n"
    path = tmp_path / f"rows.tsv{suffix}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[suffix](content))
    source = CsvSource(path=str(tmp_path))  # found by its name, and parsed by it
    assert told(everything(source)) == [(2, {"a": "1", "b": "x"}), (3, {"a": "2", "b": None})]
    assert len(look(source).groups) == (not suffix)
    if suffix:
        path.write_bytes(path.read_bytes()[:-9])
        assert "no whole " in everything(source)[-1].error


def test_delimiter_quote_charset_names_and_missing_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes("-;5' 3\"\nMüller;?\n".encode("cp1252"))
    source = CsvSource(path=str(path), delimiter=";", quote="", charset="cp1252", names=("a", "b"), missing=("-", "?"))
    assert told(everything(source)) == [(1, {"a": None, "b": "5' 3\""}), (2, {"a": "Müller", "b": None})]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("names", [None, ("a", "b")])
def test_the_line_that_tells_excel_the_delimiter_is_not_a_row(
    mark: bytes, names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(mark + b"sep=;\r\n" + (b"" if names else b"a;b\r\n") + b"1;2\r\n3;4\r\n")
    source = CsvSource(path=str(path), delimiter=";", names=names)
    assert [row.row for row in everything(source)] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_a_header_among_the_rows_is_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"  # cat one.csv two.csv
    path.write_bytes(b"a,b\n1,2\na , b\n3,4\n\xef\xbb\xbfa,b\na,5\n")
    rows = everything(CsvSource(path=str(path)))
    assert [row.row for row in rows if row.row] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}, {"a": "a", "b": "5"}]
    assert [row.position for row in rows if row.error] == [3, 5]
    # Nor is the header of a file that `names` is set for.
    assert everything(CsvSource(path=str(path), names=("a", "b")))[0].error
    path.write_bytes(b"text\ntext\n")  # one column: it may well be a value
    assert [row.row for row in everything(CsvSource(path=str(path)), ("text",))] == [{"text": "text"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("names", [None, ("a", "b")])
def test_a_file_of_wide_characters_is_refused(encoding: str, names: tuple[str, ...] | None, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes("a,b\r\n1,2\r\n".encode(encoding))
    assert "iconv -f UTF-" in problem_of(CsvSource(path=str(tmp_path), names=names), ("a", "b"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"sep=;\na;b\n", "its first line says that values are between ';'; set `delimiter: ';'`."),
        (b"a,c\n1,2\n", "has no column 'b' (set `columns.b`); it has: a, c."),
        (b"a,b,b\n1,2,3\n", "the header names 'b' more than once; set `names`."),
        (b'a,"b\n', "the first row is not a header: not CSV: unexpected end of data."),
    ],
)
def test_a_wrong_header_is_found_by_the_inspection(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    assert look(CsvSource(path=str(tmp_path))).problem.endswith(problem)


@pytest.mark.parametrize(
    ("changes", "code", "value"),
    [
        ({"charset": "utf-16"}, "unsupported_encoding", "utf-16"),
        ({"charset": "klingon"}, "unknown_encoding", "'klingon'"),
        ({"delimiter": "||"}, "string_too_long", "delimiter"),
    ],
)
def test_an_encoding_or_delimiter_that_cannot_be_read_is_refused(
    changes: dict[str, str], code: str, value: str
) -> None:
    with raises(SpecError, code, value):
        CsvSource.parse({"format": "csv", "path": "x.csv"} | changes)


@pytest.mark.parametrize("content", [b"", b"a,b\n"])
def test_a_file_without_rows_has_no_rows(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    assert everything(CsvSource(path=str(tmp_path))) == []


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_rest_holds_all_columns_that_are_not_named(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / f"rows.{kind}"
    if kind == "csv":  # pandas writes its row numbers without a name
        path.write_text(",size,colour,y\n0,1,red,2\n")
        source: Any = CsvSource(path=str(path), columns={"target": "y"})
    elif kind == "jsonl":
        path.write_text('{"size": "1", "colour": "red", "y": "2"}\n')
        source = JsonlSource(path=str(path), columns={"target": "y"})
    else:
        pq.write_table(pa.table({"size": ["1"], "colour": ["red"], "y": ["2"]}), path)
        source = ParquetSource(path=str(path), columns={"target": "y"})
    assert [raw.row for raw in everything(source, (REST, "target"))] == [
        {"target": "2", REST: {"size": "1", "colour": "red"}}
    ]
    assert "has no column 'z'" in problem_of(source, (REST, "z"))


def test_a_table_of_files_gives_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("picture,label\n1.png,x\nnowhere.png,y\n,z\n")
    source = CsvSource(path=str(tmp_path / "rows.csv"), image="picture")
    digests = set()
    for content in (b"one", b"two"):
        (tmp_path / "1.png").write_bytes(content)
        first, second, third = everything(source, ("image", "label"))
        assert first.row == {"image": content, "label": "x"}
        assert second.error == f"{tmp_path}/nowhere.png does not exist."
        assert third.row == {"image": None, "label": "z"}
        digests.add(look(source, ("image", "label")).sha256)
    assert len(digests) == 2


@pytest.mark.parametrize("plain", [True, False])
def test_an_endless_line_is_never_whole_in_memory(plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_MAX_LINE", 1 << 20)
    monkeypatch.setattr(delimited, "scannable", lambda *_: plain)
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b\n1,2\n" + b"\0" * (40 << 20) + b'\n3,4\n5,"\n' + b"x" * (2 << 20) + b"\n7,8")
    tracemalloc.start()
    rows = everything(CsvSource(path=str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    too_long = "a line of 1,048,576 bytes or more; is the file CSV?"
    assert told(rows) == [
        (2, {"a": "1", "b": "2"}),
        (3, too_long),
        (4, {"a": "3", "b": "4"}),
        (5, too_long),  # its quote is not closed before such a line comes
        (6, too_long),
        (7, {"a": "7", "b": "8"}),
    ]


def test_a_large_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b\n" + b"1234567890,abcdefghij\n" * 400_000)
    source = CsvSource(path=str(path))
    tracemalloc.start()
    found = look(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.rows, len(found.groups)) == (400_000, 3)
    assert peak < 2 << 20
