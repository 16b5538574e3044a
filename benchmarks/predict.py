"""Cost of batch prediction beside the same model called in a plain loop, rows per second.

`maas predict` with one worker of one CPU reads a Parquet file of PNG images, answers its rows and writes Parquet. The
loop reads the same file with PyArrow, decodes with the same task, calls the same network on batches of the same size
and one thread, and keeps the answers in memory. In turns, in one run.

    python benchmarks/predict.py [--rows 12000] [--rounds 3]

`whole` is the call as a user waits for it, start of the actor and the manifest included; `steady` counts from the first
output file to the last, which is what a longer input would go at.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

BATCH = 32


def table(path: Path, rows: int) -> None:
    """Scanned digits, enlarged to 28×28, as PNG files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    images = []
    for image in load_digits().images:
        buffer = io.BytesIO()
        Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((28, 28)).save(buffer, "png")
        images.append(buffer.getvalue())
    content = [images[place % len(images)] for place in range(rows)]
    pq.write_table(pa.table({"id": np.arange(rows), "image": content}), path, row_group_size=500)


def loop(task, model, path: Path) -> float:
    """Rows a second of the plain loop."""
    from maas_ray.serve.engines import network

    began, answers = time.perf_counter(), []
    for batch in pq.ParquetFile(path).iter_batches(BATCH):
        inputs = [task.to_inputs(task.request(image=image)) for image in batch["image"].to_pylist()]
        answers += [task.to_answer(answer) for answer in network.answers(task, model, inputs)]
    return len(answers) / (time.perf_counter() - began)


def ours(path: Path, output: Path) -> tuple[float, float]:
    """Rows a second of `maas predict`: whole, and steady."""
    from maas_ray import PredictSpec, predict

    began = time.perf_counter()
    done = predict(
        PredictSpec(version="bench-predict/1", input=str(path), output=str(output), part_rows=1000, batch_size=BATCH)
    )
    whole = done.rows / (time.perf_counter() - began)
    times = sorted((part.stat().st_mtime, pq.read_metadata(part).num_rows) for part in output.glob("part-*.parquet"))
    steady = sum(rows for _, rows in times[1:]) / (times[-1][0] - times[0][0])
    return whole, steady


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maas-bench-", ignore_cleanup_errors=True) as directory:
        os.environ["MAAS_HOME"] = f"{directory}/home"
        import torch

        from maas_ray import cluster
        from maas_ray.serve.engines import network
        from maas_ray.serve.spec import ServingOptions
        from maas_ray.settings import Settings
        from maas_ray.tasks.vision.networks import Cnn
        from tests.support import bundles

        settings, path = Settings.from_environment(), Path(directory) / "digits.parquet"
        table(path, arguments.rows)
        task = bundles.image_task(tuple(map(str, range(10))), size=28)
        bundles.Cnn = lambda **_: Cnn()  # the founding documents' net, not a toy
        bundles.register(settings, "bench-predict", task, Path(directory) / "bundle")
        torch.set_num_threads(1)
        model, _ = network.load(task, Path(directory) / "bundle", ServingOptions())
        print(f"load before: {os.getloadavg()[0]:.1f}")
        try:
            cluster.connect(settings)
            found = []
            for number in range(arguments.rounds):
                plain = loop(task, model, path)
                whole, steady = ours(path, Path(directory) / f"out-{number}")
                found.append((plain, whole, steady))
                ratios = f"whole {whole:,.0f} ({whole / plain:.2f})  steady {steady:,.0f} ({steady / plain:.2f})"
                print(f"loop {plain:,.0f}  {ratios}")
        finally:
            cluster.down(settings)
    for name, place in (("whole", 1), ("steady", 2)):
        ratios = [one[place] / one[0] for one in found]
        print(
            f"{name}: {statistics.median(one[place] for one in found):,.0f} rows/s against "
            f"{statistics.median(one[0] for one in found):,.0f}; ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}–{max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
