"""The same corpus on clusters of one, two and four workers: the same fingerprint and the same bytes."""

import csv
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maas_ray import cluster as clusters

DRIVER = """
import json, sys, tempfile, ray
from maas_ray import PrepareSpec, Settings, prepare

settings = Settings.from_environment()
with tempfile.TemporaryDirectory(prefix="maas-w", dir="/tmp") as directory:
    ray.init(address="local", num_cpus=int(sys.argv[2]), include_dashboard=False, logging_level="ERROR",
             log_to_driver=False, object_store_memory=128 << 20, _temp_dir=directory,
             runtime_env={"env_vars": settings.environment()})
    dataset = prepare(PrepareSpec.from_text(sys.argv[1], source="test"), settings=settings)
    ray.shutdown()
print("\\n" + json.dumps([dataset.uri, dataset.fingerprint]))
"""


def prepared(spec: dict[str, object], workers: int, home: Path) -> tuple[str, str]:
    """Prepare in a process and a cluster of its own; gives the fingerprint, and a digest of all that is stored."""
    http, grpc = clusters.free_ports(2)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAAS_", "RAY_"))}
    own |= {"MAAS_HOME": str(home), "MAAS_HTTP_PORT": str(http), "MAAS_GRPC_PORT": str(grpc)}
    own |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_AUTH_MODE": "disabled"}
    # Loopback only, and no warning of how many processes run on a small machine.
    own |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(spec), str(workers)],
        env=own,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    uri, fingerprint = json.loads(done.stdout.strip().splitlines()[-1])
    digest = hashlib.sha256()
    for path in sorted(Path(uri).glob("t*/*.parquet")) + sorted(Path(uri).glob("validation/*.parquet")):
        digest.update(path.parent.name.encode())
        table = pq.read_table(path).combine_chunks()
        for column in table.columns:
            digest.update(repr(column.to_pylist()).encode())
    for path in sorted((Path(uri) / "task").rglob("*")):
        digest.update(path.read_bytes())
    return fingerprint, digest.hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    draw = random.Random(0)
    (tmp_path / "in").mkdir()
    for number in range(3):
        with (tmp_path / f"in/{number}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["a", "b", "price"])
            for _ in range(4000):
                writer.writerow([draw.random(), draw.choice(["x", "y, z", 'say "no"', ""]), draw.randrange(500)])
            file.write('broken,"x"y,1\n')
    spec = {
        "dataset": "workers",
        "task": {"type": "tabular-regression", "target": "price"},
        "sources": [{"format": "csv", "path": str(tmp_path / "in")}],
        "max_quarantined": 0.01,
    }
    found = {workers: prepared(spec, workers, tmp_path / f"home-{workers}") for workers in (1, 2, 4)}
    assert len(set(found.values())) == 1, found
