"""Memory of `maas prepare` while its input grows 1, 4, 16 and 64 times, and what it spills.

Each size is prepared in a cluster of its own by a process of its own, since a process hardly gives memory back. Every
0.2 s the proportional set size of the driver and of every process of the cluster is read (`/proc/PID/smaps_rollup`): a
page that several share is counted once in all. What is private (`Pss_Anon`) is told apart from the object store
(`Pss_Shmem`), which Ray fills up to its limit whatever the input and spills to disk beyond; the limit is set here, as
it would be on a machine of 10/3 of it. Files that are mapped (libraries) are in the total alone, kernel caches are not
in. `over rest` is what is private less what Ray's own processes hold before anything runs. `spilled` is the most that
lay on disk at a time, `work` the most that lay in the platform's storage: the cache for resuming, and the dataset.

    python benchmarks/prepare_scale.py [--format text|csv] [--megabytes 12] [--cpus 2] [--store 512] [--scales 1 4]
    python benchmarks/prepare_scale.py --format csv --megabytes 5000 --scales 1 --store 1000 --cap 6000

With `--cap`, the cluster, the driver and all their workers share that much memory: they run in a cgroup of their own
(version 1 or 2; needs root), which counts the object store and the page cache too, and kills what goes beyond it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

SCALES = (1, 4, 16, 64)
PERIOD = 0.2  # seconds
DRIVER = (
    "import sys; from maas_ray import PrepareSpec, prepare\n"
    "prepare(PrepareSpec.from_text(sys.argv[1], source='benchmark'))"
)


def write_csv(directory: Path, size: int) -> None:
    """A table of 12 columns: numbers, categories, words with a comma in quotes."""
    random, done, rows = np.random.default_rng(0), 0, 20_000
    cities = np.array(["Berlin", "Paris", '"São Paulo, BR"', '"New York, US"', "Lagos", "Delhi", "Lima"])
    with (directory / "rows.csv").open("w", encoding="utf-8") as file:
        file.write("id,age,income,height,weight,score,ratio,city,plan,active,visits,price\n")
        while done < size:
            columns = [
                random.integers(0, 10**12, rows),
                random.integers(18, 99, rows),
                random.lognormal(10, 1, rows).round(2),
                random.normal(170, 10, rows).round(1),
                random.normal(70, 12, rows).round(1),
                random.random(rows).round(6),
                random.normal(size=rows).round(6),
                cities[random.integers(0, len(cities), rows)],
                np.array(["free", "pro", "team", ""])[random.integers(0, 4, rows)],
                np.array(["true", "false"])[random.integers(0, 2, rows)],
                random.integers(0, 1000, rows),
                random.lognormal(3, 1, rows).round(2),
            ]
            text = "\n".join(map(",".join, zip(*(column.astype(str) for column in columns), strict=True))) + "\n"
            file.write(text)
            done += len(text)


def spec_of(kind: str, directory: Path) -> dict[str, object]:
    """The spec to prepare."""
    if kind == "csv":
        task: dict[str, object] = {"type": "tabular-regression", "target": "price", "exclude": ["id"]}
        return {"dataset": "bench", "task": task, "sources": [{"format": "csv", "path": str(directory)}]}
    task = {"type": "text-generation", "tokenizer": {"vocab_size": 4096, "fit_megabytes": 8}}
    return {"dataset": "bench", "task": task, "sources": [{"format": "jsonl", "path": str(directory)}]}


class Watch(threading.Thread):
    """Reads the memory of some processes and all below them, and keeps the peaks, bytes."""

    def __init__(self, roots: list[psutil.Process]) -> None:
        super().__init__(daemon=True)
        self.roots, self.peaks, self.done = roots, defaultdict(int), threading.Event()

    def run(self) -> None:
        """Until told that it is done."""
        while not self.done.wait(PERIOD):
            sums = defaultdict(int)
            for root in self.roots:
                for process in [root, *children(root)]:
                    for name, size in memory(process).items():
                        sums[name] += size
                    private = memory(process).get("private", 0)
                    part = "driver" if process == self.roots[-1] else "largest worker"
                    self.peaks[part] = max(self.peaks[part], private)
            for name, size in sums.items():
                self.peaks[name] = max(self.peaks[name], size)


def children(process: psutil.Process) -> list[psutil.Process]:
    """All processes below one."""
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def memory(process: psutil.Process) -> dict[str, int]:
    """A process's share of memory, bytes; none where it is gone."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    found = {name: int(rest.split()[0]) << 10 for name, rest in (line.split(":", 1) for line in lines)}
    return {"all": found["Pss"], "private": found["Pss_Anon"], "store": found["Pss_Shmem"]}


def spilled(directory: Path) -> int:
    """Bytes that lie in Ray's spilling directories below one."""
    return sum(path.stat().st_size for path in directory.glob("session_*/ray_spilled_objects*/*") if path.is_file())


def size_of(directory: Path) -> int:
    """Bytes of the files below a directory, while other processes write and remove some."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def measured(kind: str, size: int, cpus: int, scratch: Path) -> dict[str, float]:
    """Peaks while one input is prepared, MB, and seconds."""
    from benchmarks import tokenize_pack
    from maas_ray import cluster
    from maas_ray.settings import Settings

    directory, home = scratch / "input", scratch / "home"
    directory.mkdir()
    (write_csv if kind == "csv" else tokenize_pack.write_text)(directory, size)
    environment = os.environ | {"MAAS_HOME": str(home)}
    settings = Settings.from_environment({"MAAS_HOME": str(home)})
    cluster.up(settings, num_cpus=cpus)
    state = json.loads((home / "cluster.json").read_text())
    roots = [
        psutil.Process(one["pid"]) for one in (state["parent"], *state["children"]) if psutil.pid_exists(one["pid"])
    ]
    try:
        roots = [root for root in roots if not set(root.parents()) & set(roots)]
        rest = sum(memory(one).get("private", 0) for root in roots for one in [root, *children(root)])
        started = time.monotonic()
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, json.dumps(spec_of(kind, directory))], env=environment)
        watch, disk, work = Watch([*roots, psutil.Process(driver.pid)]), 0, 0
        watch.start()
        while driver.poll() is None:
            time.sleep(1)
            disk = max(disk, spilled(Path(state["temp_dir"])))
            work = max(work, size_of(home / "storage"))
        seconds = time.monotonic() - started
        watch.done.set()
        watch.join()
        if driver.returncode:
            raise SystemExit(f"preparing failed with status {driver.returncode}")
    finally:
        cluster.down(settings)
        shutil.rmtree(scratch / "input")
        shutil.rmtree(home, ignore_errors=True)
    watch.peaks["over rest"] = watch.peaks["private"] - rest
    found = {name: peak / 1e6 for name, peak in watch.peaks.items()}
    return found | {"spilled": disk / 1e6, "work": work / 1e6, "seconds": seconds}


@contextmanager
def capped(megabytes: int | None) -> Iterator[None]:
    """Within the context, this process and all that it starts share so much memory. None: as much as there is."""
    if megabytes is None:
        yield
        return
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    root = Path("/sys/fs/cgroup" if unified else "/sys/fs/cgroup/memory")
    group = root / f"maas-bench-{os.getpid()}"
    if unified:
        (root / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(megabytes * 10**6))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (root / "cgroup.procs").write_text(pid)
        group.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=("text", "csv"), default="text")
    parser.add_argument("--megabytes", type=int, default=12)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--store", type=int, default=512, help="limit of the object store, MB")
    parser.add_argument("--cap", type=int, help="limit of the memory of all processes together, MB")
    parser.add_argument("--scales", type=int, nargs="*", default=SCALES)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no cluster is left
    os.environ["RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"] = str(arguments.store * 10**6)
    found = {}
    for scale in arguments.scales:
        scratch_directory = tempfile.TemporaryDirectory(prefix="maas-bench-", ignore_cleanup_errors=True)
        with scratch_directory as scratch, capped(arguments.cap):
            size = scale * arguments.megabytes
            found[scale] = measured(arguments.format, size * 10**6, arguments.cpus, Path(scratch))
        print(
            f"{arguments.format}, {size:,} MB: " + "  ".join(f"{k} {v:,.0f}" for k, v in found[scale].items()),
            flush=True,
        )
        print(f"{'':>16}  spilled {found[scale]['spilled'] / size:.2f} bytes for each byte read", flush=True)
    first = found[arguments.scales[0]]
    for name in ("all", "private", "over rest", "store", "driver", "largest worker"):
        print(f"{name:>16}: " + "  ".join(f"{scale}× {one[name] / first[name]:.2f}" for scale, one in found.items()))


if __name__ == "__main__":
    main()
