#!/usr/bin/env bash
# Polars 2.1 and datasets 5.2: a directory of Parquet files is not read if other files lie in it, hidden or not.
# Expected: names that begin with `_` or `.` are skipped, as pandas, pyarrow and Spark do.
# Effect: `maas predict` writes its manifest and quarantined rows beside the answers, not among them, and no Arrow maps,
#   which datasets refuses (`maas_ray/batch/writing.py`).
# Needs: polars==2.1.0 datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1
# Seen: `_`: pandas reads, Polars fails, datasets fails; `.`: pandas reads, Polars fails, datasets reads; a map: pandas
#   reads, Polars reads, datasets fails
set -euo pipefail
source "$(dirname "$0")/environment.sh"

export HF_HOME="$work/hf" HF_DATASETS_OFFLINE=1
python - 2>/dev/null <<'PY'
import pathlib, sys

import datasets, pandas, polars
import pyarrow as pa
import pyarrow.parquet as pq

datasets.disable_progress_bars()
plain = pa.table({"label": ["a", "b"]})
mapped = pa.table({"scores": pa.array([[("a", 0.5)]], pa.map_(pa.string(), pa.float64()))})


def readers(directory):
    yield "pandas", lambda: pandas.read_parquet(directory)
    yield "Polars", lambda: polars.read_parquet(directory)
    yield "datasets", lambda: datasets.load_dataset("parquet", data_dir=directory, cache_dir=f"{directory}-cache")


def outcomes(name, table, *others):
    directory = pathlib.Path(name)
    directory.mkdir()
    pq.write_table(table, directory / "part-0.parquet")
    for other in others:
        (directory / other).write_text("{}")
    found = {}
    for reader, read in readers(str(directory)):
        try:
            read()
            found[reader] = "reads"
        except Exception:
            found[reader] = "fails"
    print(f"{name}: {found}")
    return tuple(found.values())


seen = outcomes("plain", plain), outcomes("under", plain, "_manifest.json"), outcomes("dot", plain, ".manifest.json")
seen += (outcomes("map", mapped),)
expected = ("reads",) * 3, ("reads", "fails", "fails"), ("reads", "fails", "reads"), ("reads", "reads", "fails")
sys.exit(seen != expected)
PY
