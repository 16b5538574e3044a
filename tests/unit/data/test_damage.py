"""Files that cannot be read weigh what they hold."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from backports import zstd

from maas_ray.data import damage
from maas_ray.data.dry_run import dry_run
from maas_ray.data.reading import inspect
from maas_ray.data.sources import AnySource, list_files
from maas_ray.data.spec import PrepareSpec
from maas_ray.errors import DataError
from maas_ray.settings import Settings
from tests.support.errors import raises
from tests.support.sources import raws, source
from tests.unit.data.sources.test_formats import tar_of

LINES = [json.dumps({"text": f"document {n} {n * 7919 % 104729} {n * 104729 % 7919}"}) for n in range(20_000)]


def shards(directory: Path, count: int = 5) -> list[Path]:
    directory.mkdir()
    paths = [directory / f"{shard}.parquet" for shard in range(count)]
    for shard, path in enumerate(paths):
        pq.write_table(pa.table({"text": [f"document {shard} {row}" for row in range(1000)]}), path)
    return paths


def spec(path: Path, **fields: object) -> PrepareSpec:
    document = {
        "dataset": "d",
        "task": {"type": "text-generation"},
        "sources": [{"format": "parquet", "path": str(path)}],
    }
    return PrepareSpec.parse(document | fields)


def test_files_that_cannot_be_read_count_as_the_rows_that_their_bytes_would_hold(tmp_path: Path) -> None:
    paths = shards(tmp_path / "shards")
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    paths[3].write_bytes(paths[3].read_bytes()[: paths[3].stat().st_size // 2])
    of = source(format="parquet", path=str(tmp_path / "shards"))

    broken = [raw for raw in raws(of, ("text",)) if raw.row is None]

    # Each whole file has 1,000 rows; one of the broken ones has all of its bytes but one, the other half of them.
    assert [raw.rows for raw in broken] == [pytest.approx(1000, rel=0.05), pytest.approx(500, rel=0.05)]


def test_too_many_rows_in_broken_files_stop_the_run_before_it_reads(tmp_path: Path, settings: Settings) -> None:
    paths = shards(tmp_path / "shards")
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[:-1])

    with raises(DataError, "too_many_quarantined", "0.2", str(paths[0]), str(paths[1]), "max_quarantined"):
        dry_run(spec(tmp_path / "shards"), settings=settings)

    told = dry_run(spec(tmp_path / "shards", max_quarantined=0.5), settings=settings)
    assert sum(("cannot be read" in line and "about 1,0" in line) or "about 99" in line for line in told) == 2


def zstd_of(content: bytes) -> bytes:
    return zstd.compress(content)


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd_of)]
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "webdataset"])
def test_the_rest_of_a_damaged_file_counts_by_its_bytes(
    tmp_path: Path, kind: str, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    count = len(LINES)
    if kind == "csv":
        content = b"text\n" + b"".join(f"{json.loads(line)['text']}\n".encode() for line in LINES)
    elif kind == "webdataset":
        count = 4000
        content = tar_of([(f"{n}.txt", line.encode()) for n, line in enumerate(LINES[:count])])
    else:
        content = "\n".join(LINES).encode()
    # Frames of their own, so that each format is damaged in the middle, and not at its end.
    quarter = len(content) // 4
    data = [pack(content[start : start + quarter]) for start in range(0, len(content), quarter)]
    damaged = bytearray(data[2])
    damaged[4 : len(damaged) // 2] = bytes(len(damaged) // 2 - 4)
    (tmp_path / f"a.{kind}.{suffix}").write_bytes(b"".join([*data[:2], damaged, *data[3:]]))

    named = {"text": "txt"} if kind == "webdataset" else {}
    rows = raws(source(format=kind, path=f"{tmp_path}/a.{kind}.{suffix}", **named), ("text",))

    good, broken = sum(raw.rows for raw in rows if raw.row), [raw.rows for raw in rows if raw.row is None]
    assert good == pytest.approx(count / 2, rel=0.2)
    assert sum(broken) == pytest.approx(count / 2, rel=0.5)  # the damage is located to 8 kB


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_file_that_is_not_what_its_name_says_counts_by_its_bytes(tmp_path: Path, suffix: str) -> None:
    for name in "abc":
        content = "\n".join(LINES[:1000]).encode()
        (tmp_path / f"{name}.jsonl").write_bytes(content)
    (tmp_path / f"d.jsonl.{suffix}").write_bytes("\n".join(LINES[:1000]).encode())

    rows = raws(source(format="jsonl", path=str(tmp_path)), ("text",))

    assert [raw.rows for raw in rows if raw.row is None] == [pytest.approx(1000, rel=0.01)]


def test_a_damaged_batch_of_arrow_has_its_own_rows(tmp_path: Path) -> None:
    """pandas' Feather is compressed, so a damaged byte spoils a whole batch."""
    path = tmp_path / "a.feather"
    rows = pd.DataFrame({"text": LINES})
    pa.feather.write_feather(rows, str(path), compression="zstd", chunksize=5000)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 + 2000
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)

    broken = [raw.rows for raw in raws(source(format="arrow", path=str(path)), ("text",)) if raw.row is None]

    assert broken == [5000]


def test_a_tar_whose_header_is_damaged_counts_by_its_bytes(tmp_path: Path) -> None:
    data = bytearray(tar_of([(f"{n}.txt", b"x" * 500) for n in range(100)]))
    data[20 * 1024 + 3] ^= 1  # a header and a block for each member
    (tmp_path / "a.tar").write_bytes(data)

    rows = raws(source(format="webdataset", path=str(tmp_path)), ("text",))

    assert sum(raw.row is not None for raw in rows) == 19
    assert rows[-1].rows == pytest.approx(81, abs=10)  # a tar is filled up to 10 kB


def test_a_file_that_was_cut_off_is_named_although_the_lost_rows_cannot_be_counted(
    tmp_path: Path, settings: Settings
) -> None:
    data = gzip.compress("\n".join(LINES).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    of = {"format": "jsonl", "path": str(tmp_path)}

    told = dry_run(spec(tmp_path, sources=[of]), settings=settings)

    (line,) = [line for line in told if "cannot be read" in line]
    assert "a.jsonl.gz: no whole gzip file: " in line
    assert line.endswith("nobody can say how many rows followed")


def inspected(of: AnySource) -> list[int]:
    return [file.rows for file in damage.weighed([inspect(of, file, ("text",)) for file in list_files(of)])]


def test_json_lines_in_utf16_count_by_their_bytes(tmp_path: Path) -> None:
    content = "\n".join(LINES[:1000])
    (tmp_path / "a.jsonl").write_text(content)
    (tmp_path / "b.jsonl").write_text(content, encoding="utf-16")

    assert inspected(source(format="jsonl", path=str(tmp_path))) == [1000, pytest.approx(2000, rel=0.01)]


def test_an_input_of_broken_files_alone_is_refused(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no Parquet")

    with raises(DataError, "too_many_quarantined", "1 of 1", "a.parquet"):
        dry_run(spec(tmp_path), settings=settings)
