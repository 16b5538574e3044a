#!/usr/bin/env bash
# Polars 2.1 and DuckDB 2.0: a null in a CSV file of one column is written as an empty line, which pandas, pyarrow and
#   Python's csv skip.
# Expected: a file has as many rows when it is read as were written; pandas writes `""`.
# Effect: such a row is not read and not counted (`maas_ray/data/sources/csv/scan.py` skips empty lines as `csv` does).
#   The row had no value.
# Needs: polars==2.1.0 duckdb==2.0.1 pandas==3.1.1 pyarrow==26.0.1
# Seen: 3 rows written; Polars and DuckDB: read by pandas 2, pyarrow 2, csv 2, Polars 3; pandas: 3, 3, 3, 3
set -euo pipefail
source "$(dirname "$0")/environment.sh"

python - <<'PY'
import csv, sys

import duckdb, pandas, polars
import pyarrow.csv

frame = pandas.DataFrame({"text": ["a", None, "c"]})
writers = {
    "Polars": lambda path: polars.DataFrame({"text": ["a", None, "c"]}).write_csv(path),
    "DuckDB": lambda path: duckdb.sql("select unnest(['a', null, 'c']) as text").write_csv(path),
    "pandas": lambda path: frame.to_csv(path, index=False),
}
readers = {
    "pandas": lambda path: len(pandas.read_csv(path)),
    "pyarrow": lambda path: pyarrow.csv.read_csv(path).num_rows,
    "csv": lambda path: sum(map(bool, csv.reader(open(path)))) - 1,
    "Polars": lambda path: len(polars.read_csv(path)),
}
seen = {}
for writer, write in writers.items():
    write(f"{writer}.csv")
    seen[writer] = {reader: read(f"{writer}.csv") for reader, read in readers.items()}
    print(f"written by {writer}: {seen[writer]}")
lost = {"pandas": 2, "pyarrow": 2, "csv": 2, "Polars": 3}
sys.exit(seen != {"Polars": lost, "DuckDB": lost, "pandas": dict.fromkeys(lost, 3)})
PY
