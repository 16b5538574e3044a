"""Fitting an image task: sums over blocks in the workers, beside all images in the driver.

The images lie in blocks in the object store, as `prepare` leaves them. Both ways give the same task; the driver's way
is that of a task with a `fit` of its own. Times are medians over rounds that alternate. The driver's own CPU time is
what no number of workers shortens; its memory is the growth of its private memory while it fits.

    python benchmarks/fit.py [--images 4000] [--side 384] [--blocks 16] [--cpus 2] [--rounds 3]
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from maas_ray.data.pipeline import global_steps, row_steps
from maas_ray.data.pipeline.blocks import Blocks, quiet
from maas_ray.data.pipeline.objects import packed
from maas_ray.data.pipeline.ordering import training_rows
from maas_ray.data.pipeline.packing import saved
from maas_ray.data.pipeline.read_rows import Reading, read_rows
from maas_ray.data.pipeline.rows import sealed
from maas_ray.data.reading import Part, inspect
from maas_ray.data.sources import ParquetSource, list_files
from maas_ray.data.splits.spec import Splits
from maas_ray.tasks import Task, TaskSpec
from maas_ray.tasks.vision.classification import ImageClassificationSpec
from maas_ray.terminal.lines import progress


def write_images(path: Path, count: int, side: int) -> None:
    """Square JPEG files in a table."""
    random, rows = np.random.default_rng(0), []
    for number in range(count):
        picture = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
        data = io.BytesIO()
        picture.resize((side, side), Image.Resampling.BICUBIC).save(data, "JPEG")
        rows.append({"image": data.getvalue(), "label": f"{number % 10}"})
    pq.write_table(pa.Table.from_pylist(rows), path)


def ordered_blocks(spec: TaskSpec, path: Path, blocks: int) -> Blocks:
    """The rows as `prepare` keeps them, all in the training split."""
    source = ParquetSource(path=str(path))
    inspected = [inspect(source, file, spec.columns) for file in list_files(source)]
    parts = [Part(source, file, range(len(file.groups))) for file in inspected]
    rows = pa.concat_tables(read_rows(packed(enumerate(parts)), Reading(spec, Splits(validation=0, test=0))))
    edges = np.linspace(0, len(rows), blocks + 1).astype(int)
    return [ray.put(sealed(rows[low:high])) for low, high in pairwise(edges)]


def in_driver(spec: TaskSpec, ordered: Blocks) -> Task:
    return spec.fit(kept.row for rows in training_rows(ordered) for kept in row_steps.kept_rows(rows, spec))


def in_blocks(spec: TaskSpec, ordered: Blocks) -> Task:
    with progress("", None) as bar:
        return global_steps.fit_task(spec, ordered, bar)


class Measured(NamedTuple):
    """Seconds, the driver's CPU seconds, the megabytes by which it grew, and the task."""

    seconds: float
    cpu: float
    memory: float
    task: Task


def measured(fit: Callable[[TaskSpec, Blocks], Task], spec: TaskSpec, ordered: Blocks) -> Measured:
    process = psutil.Process()
    before, started, cpu = process.memory_full_info().uss, time.perf_counter(), time.process_time()
    task = fit(spec, ordered)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Measured(seconds, cpu, (process.memory_full_info().uss - before) / 1e6, task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    spec = ImageClassificationSpec()
    ray.init(num_cpus=options.cpus, include_dashboard=False, configure_logging=False)
    with tempfile.TemporaryDirectory() as directory, quiet(0):
        path = Path(directory) / "images.parquet"
        write_images(path, options.images, options.side)
        ordered = ordered_blocks(spec, path, options.blocks)
        in_blocks(spec, ordered)  # starts the workers
        rounds = [[measured(fit, spec, ordered) for fit in (in_driver, in_blocks)] for _ in range(options.rounds)]
    assert all(saved(one.task) == saved(other.task) for one, other in rounds), "the tasks differ"
    print(f"{options.images:,} images of {options.side}×{options.side}, {options.cpus} CPUs")
    for name, ways in zip(("in the driver", "in blocks"), zip(*rounds, strict=True), strict=True):
        seconds, cpu, memory = (statistics.median(way[field] for way in ways) for field in range(3))
        print(f"{name:<14} {seconds:6.1f} s, of the driver's CPU {cpu:6.2f} s, {memory:+6.1f} MB in the driver")
    ray.shutdown()


if __name__ == "__main__":
    main()
