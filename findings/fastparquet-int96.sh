#!/usr/bin/env bash
# fastparquet 2026.9 with pandas 3: `times="int96"` writes the times of a column of microseconds as nanoseconds.
# Expected: the times that were written; pandas 3 makes columns of microseconds by default.
# Effect: 2024 is read as January 1970, by every reader. `maas prepare` cannot tell; write with pandas' own engine.
# Needs: fastparquet==2026.9.0 pandas==3.1.1 pyarrow==26.0.1
# Seen: 2024-01-01 written, 1970-01-20 17:21:07.200000 read
set -euo pipefail
source "$(dirname "$0")/environment.sh"

python - <<'PY'
import sys

import fastparquet, pandas
import pyarrow.parquet

frame = pandas.DataFrame({"time": pandas.to_datetime(["2024-01-01"])})
fastparquet.write("times.parquet", frame, times="int96")
(read,) = pyarrow.parquet.read_table("times.parquet")["time"].to_pylist()
print(f"{frame['time'].dtype} {frame['time'][0]} written, {read} read")
sys.exit(read.year != 1970)
PY
