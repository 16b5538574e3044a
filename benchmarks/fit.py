"""Fitting an image task: sums over blocks in the workers, beside all images in the driver.

The images lie in blocks in the object store, as `prepare` leaves them. Both ways give the same task; the driver's way
is that of a task with a `fit` of its own. Times are medians over rounds that alternate; the driver's memory is the
growth of its private memory while it fits.

    python benchmarks/fit.py [--images 20000] [--blocks 16] [--cpus 2] [--rounds 3]
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

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from maas_ray.data.pipeline import global_steps, row_steps
from maas_ray.data.pipeline.blocks import Blocks, quiet, tables
from maas_ray.data.pipeline.objects import packed
from maas_ray.data.pipeline.packing import saved
from maas_ray.data.pipeline.read_rows import Reading, read_rows
from maas_ray.data.reading import Part, inspect
from maas_ray.data.sources import ParquetSource, list_files
from maas_ray.data.splits.spec import Splits
from maas_ray.tasks import Task, TaskSpec
from maas_ray.tasks.vision.classification import ImageClassificationSpec
from maas_ray.terminal.lines import progress


def write_images(path: Path, count: int) -> None:
    """JPEG files of 96×96 pixels in a table."""
    random, rows = np.random.default_rng(0), []
    for number in range(count):
        pixels = np.kron(random.integers(0, 256, (12, 12, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG")
        rows.append({"image": data.getvalue(), "label": f"{number % 10}"})
    pq.write_table(pa.Table.from_pylist(rows), path)


def ordered_blocks(spec: TaskSpec, path: Path, blocks: int) -> Blocks:
    """The rows as `prepare` orders them, all in the training split."""
    source = ParquetSource(path=str(path))
    inspected = [inspect(source, file, spec.columns) for file in list_files(source)]
    parts = [Part(source, file, range(len(file.groups))) for file in inspected]
    rows = pa.concat_tables(read_rows(packed(enumerate(parts)), Reading(spec, Splits(validation=0, test=0))))
    settled = row_steps.settle(rows)
    edges = np.linspace(0, len(settled), blocks + 1).astype(int)
    return [ray.put(settled[low:high].combine_chunks()) for low, high in pairwise(edges)]


def in_driver(spec: TaskSpec, ordered: Blocks) -> Task:
    return spec.fit(kept.row for table in tables(ordered) for kept in row_steps.kept_rows(table, spec))


def in_blocks(spec: TaskSpec, ordered: Blocks) -> Task:
    with progress("", None) as bar:
        return global_steps.fit_task(spec, ordered, bar)


def measured(fit: Callable[[TaskSpec, Blocks], Task], spec: TaskSpec, ordered: Blocks) -> tuple[float, float, Task]:
    """Seconds, megabytes of private memory, and the task."""
    process = psutil.Process()
    before, started = process.memory_full_info().uss, time.perf_counter()
    task = fit(spec, ordered)
    return time.perf_counter() - started, (process.memory_full_info().uss - before) / 1e6, task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    spec = ImageClassificationSpec()
    ray.init(num_cpus=options.cpus, include_dashboard=False, configure_logging=False)
    with tempfile.TemporaryDirectory() as directory, quiet(0):
        path = Path(directory) / "images.parquet"
        write_images(path, options.images)
        ordered = ordered_blocks(spec, path, options.blocks)
        in_blocks(spec, ordered)  # starts the workers
        seconds: dict[str, list[float]] = {"in the driver": [], "in blocks": []}
        for _ in range(options.rounds):
            tasks = []
            for name, fit in (("in the driver", in_driver), ("in blocks", in_blocks)):
                taken, memory, task = measured(fit, spec, ordered)
                seconds[name].append(taken)
                tasks.append(saved(task))
                print(f"{name:<14} {taken:6.1f} s  {memory:+7.1f} MB in the driver")
            assert tasks[0] == tasks[1], "the tasks differ"
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"{options.images:,} images: in the driver ÷ in blocks = {medians['in the driver'] / medians['in blocks']:.2f}"
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
