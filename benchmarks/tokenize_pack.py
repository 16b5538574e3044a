"""Text that `maas prepare` processes per second, beside Hugging Face's tokenizers on the same text and cores.

The text is Python's standard library, as often as it takes to reach the size; the lines of each copy are prefixed
otherwise, so that no document is a duplicate of another. `tokenise and pack` are prepare's steps from kept rows in the
cluster's object store to committed shards: encode, plan, cut, shuffle, write Parquet. The other side is one process
that calls `Tokenizer.encode_batch` on the same documents with the tokenizer that prepare fitted, on as many threads as
the cluster has CPUs, and throws the result away. The steps before those are timed too: reading, sorting, fitting.

    python benchmarks/tokenize_pack.py [--megabytes 256] [--cpus 2] [--rounds 3]
"""

import argparse
import os
import signal
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

BATCH = 1000  # documents that the other side is given at once, as in `datasets.map(batched=True)`


def documents() -> list[str]:
    """The standard library's files."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            text = path.read_text(encoding="utf-8", errors="replace")
            if text.strip():
                found.append(text)
    return found


def write_text(directory: Path, size: int) -> int:
    """Documents of about `size` bytes in all, as JSON lines; gives their bytes as UTF-8."""
    import json

    originals, done, copy = documents(), 0, 0
    while done < size:
        with (directory / f"copy-{copy:03d}.jsonl").open("w", encoding="utf-8") as file:
            for text in originals:
                varied = "\n".join(
                    f"{line}  # {copy}" if not place % 16 else line for place, line in enumerate(text.split("\n"))
                )
                file.write(json.dumps({"text": varied}) + "\n")
                done += len(varied.encode())
                if done >= size:
                    break
        copy += 1
    return done


@contextmanager
def timed_stages() -> Iterator[dict[str, float]]:
    """Seconds of each stage that prepare tells of, by its label."""
    from maas_ray.data.pipeline import build, input

    seconds: dict[str, float] = {}
    stage = build.stage

    @contextmanager
    def timed(label: str, *arguments: object) -> Iterator[object]:
        started = time.perf_counter()
        with stage(label, *arguments) as bar:
            yield bar
        seconds[label] = seconds.get(label, 0.0) + time.perf_counter() - started

    build.stage = input.stage = timed
    try:
        yield seconds
    finally:
        build.stage = input.stage = stage


def ours(directory: Path, home: Path) -> tuple[dict[str, float], float, object]:
    """Seconds by stage, of the whole call, and the dataset."""
    from maas_ray import PrepareSpec, Settings, prepare

    spec = PrepareSpec.parse(
        {
            "dataset": "bench-text",
            "task": {"type": "text-generation", "tokenizer": {"vocab_size": 8192, "fit_megabytes": 16}},
            "sources": [{"format": "jsonl", "path": str(directory)}],
        }
    )
    settings = Settings.from_environment().model_copy(update={"storage": str(home)})
    started = time.perf_counter()
    with timed_stages() as seconds:
        dataset = prepare(spec, settings=settings)
    return seconds, time.perf_counter() - started, dataset


def theirs(tokenizer: object, texts: list[str], method: str) -> float:
    """Seconds of tokenizers' own batch encoding."""
    encode = getattr(tokenizer, method)
    started = time.perf_counter()
    for place in range(0, len(texts), BATCH):
        encode(texts[place : place + BATCH], add_special_tokens=False)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no cluster is left
    # Before tokenizers is imported: the threads of its pool.
    os.environ["RAYON_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"] = str(arguments.cpus), "true"
    with tempfile.TemporaryDirectory(prefix="maas-bench-", ignore_cleanup_errors=True) as scratch:
        os.environ["MAAS_HOME"] = f"{scratch}/home"
        from maas_ray import cluster
        from maas_ray.settings import Settings

        directory = Path(scratch) / "text"
        directory.mkdir()
        size = write_text(directory, arguments.megabytes * 10**6) / 1e6
        settings, rounds = Settings.from_environment(), []
        print(f"{size:,.0f} MB of text, {arguments.cpus} CPUs; load before: {os.getloadavg()[0]:.1f}")
        try:
            # The cluster's workers are to choose for themselves, as they do for a user.
            chosen = {name: os.environ.pop(name) for name in ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")}
            cluster.up(settings, num_cpus=arguments.cpus)
            os.environ.update(chosen)
            cluster.connect(settings)
            rounds += [measured(directory, Path(scratch) / f"out-{n}", size) for n in range(arguments.rounds)]
        finally:
            cluster.down(settings)
    for name in ("encode_batch", "encode_batch_fast"):
        ratios = [one["tokenise and pack"] / one[name] for one in rounds]
        print(f"tokenise and pack ÷ {name}: {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
    whole = [one["whole"] for one in rounds]
    print(f"whole prepare: {statistics.median(whole):.1f} MB/s ({min(whole):.1f}–{max(whole):.1f})")


def measured(directory: Path, home: Path, size: float) -> dict[str, float]:
    """MB/s of both sides in one round; prints them."""
    import json

    seconds, whole, dataset = ours(directory, home)
    texts = [json.loads(line)["text"] for path in sorted(directory.iterdir()) for line in path.open(encoding="utf-8")]
    found = {name: size / theirs(dataset.task.tokenizer, texts, name) for name in ("encode_batch", "encode_batch_fast")}
    packing = seconds["encoding"] + seconds["shuffling and writing"]
    found |= {"tokenise and pack": size / packing, "whole": size / whole}
    print("  ".join(f"{name} {speed:.1f} MB/s" for name, speed in found.items()))
    print("  seconds: " + "  ".join(f"{label} {took:.1f}" for label, took in seconds.items()) + f"  whole {whole:.1f}")
    return found


if __name__ == "__main__":
    main()
