"""Logical types of Parquet: those that Arrow knows are read, those that it reads as raw bytes are refused."""

import base64
import decimal
import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maas_ray.tasks.rows import REST
from tests.support.sources import problem_of, rows_of, source

# DuckDB 2.0: COPY (SELECT INTERVAL '3 months 2 days 5 seconds' AS text, {'i': INTERVAL '1 day'} AS nested)
INTERVALS = base64.b64decode(
    "UEFSMRUAFRgVKiwVAhUAFQYVBgAAKLUv/SAMYQAAAwAAAAIAAACIEwAAFQAVJBU2LBUCFQAVBhUGAAAotS/9IBKRAAACAAAAAgEAAAAAAQAAAAAAAAAV"
    "AhlMNQAYDWR1Y2tkYl9zY2hlbWEVBAAVDhUYFQAYBHRleHQlKgA1ABgGbmVzdGVkFQIAFQ4VGBUCGAFpJSoAFgIZHBksJgAcFQ4ZFQAZGAR0ZXh0FQwW"
    "AhY6FkwmCEkcFQAVABUCAAAAJgAcFQ4ZFQAZKAZuZXN0ZWQBaRUMFgIWRhZYJlRJHBUAFQAVAgAAABaAARYCJggWpAEAGRwYHGR1Y2tkYi5pbnRlcnZh"
    "bF9ibG9vbV9maWx0ZXIYDW5vcm1hbGl6ZWQtdjEAGChEdWNrREIgdmVyc2lvbiB2Mi4wLjEgKGJ1aWxkIDhkNzgxMTRlOTApGSwcAAAcAAAAAAEAAFBB"
    "UjE="
)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (("text",), "column 'text' has intervals"),
        (("nested",), "column 'nested' has intervals"),
        ((REST,), "column 'text' has intervals"),
        (("drop/nested", "drop/text", REST), ""),
    ],
)
def test_intervals_are_refused_by_name(tmp_path: Path, columns: tuple[str, ...], named: str) -> None:
    """Arrow reads an interval as twelve bytes, which would be text of control characters."""
    (tmp_path / "a.parquet").write_bytes(INTERVALS)
    problem = problem_of(source(format="parquet", path=f"{tmp_path}/a.parquet"), columns)
    assert named in problem
    assert getattr(problem, "code", "") == ("unreadable_type" if named else "")


def test_geometries_are_refused_by_name(tmp_path: Path) -> None:
    """GeoParquet stores them as bytes, and names their columns in the file's metadata."""
    table = pa.table({"text": ["a"], "place": pa.array([bytes(21)])})
    geo = {"version": "1.0.0", "primary_column": "place", "columns": {"place": {"encoding": "WKB"}}}
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "a.parquet")
    of = source(format="parquet", path=f"{tmp_path}/a.parquet")
    assert problem_of(of, ("text",)) == ""
    assert "column 'place' has geometries" in problem_of(of, ("place",))


def test_types_that_arrow_knows_are_read(tmp_path: Path) -> None:
    id_ = uuid.UUID("123e4567-e89b-12d3-a456-426614174000")
    table = pa.table(
        {
            "id": pa.array([id_.bytes], pa.uuid()),
            "json": pa.array(['{"a": 1}'], pa.json_()),
            "half": pa.array([np.float16(1.5)]),
            "amount": pa.array([decimal.Decimal("1.50")], pa.decimal128(30, 2)),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", store_schema=False)
    (row,) = rows_of(source(format="parquet", path=f"{tmp_path}/a.parquet"), tuple(table.column_names))
    assert row == {"id": id_, "json": '{"a": 1}', "half": 1.5, "amount": decimal.Decimal("1.50")}
