"""Near-duplicates beside datatrove's MinHash: documents a second, planted pairs found, what is removed.

The documents are pieces of 60 to 600 words of the standard library and of installed packages, as real text as a machine
has without a network. Of a fifth of them a copy is planted with words replaced, left out or put in, at rates that leave
a known Jaccard similarity of shingles: near-duplicates from 0.95 down to the threshold, hard negatives below it. All
sides read the same JSON Lines, take shingles of five words, as many bands of as many minima, and two processes. Clocks
run from files to the decision about every document; datatrove writes the kept ones too, since its decision is that.

    python -m venv /tmp/datatrove && /tmp/datatrove/bin/pip install 'datatrove[processing]' spacy orjson
    python benchmarks/dedup.py --datatrove /tmp/datatrove/bin/python [--documents 60000] [--rounds 2] [--words split]

Both look at the same planted pairs, so their recalls are compared pair by pair: the difference is the share of pairs
that ours alone found less the share that theirs alone found, and its interval is that of matched proportions.

`prepare` are its own steps on Ray, from listing the files to rows that are marked, exact duplicates and splits among
them; `two processes` is the same code without Ray. datatrove is run as it comes, with spaCy's English tokenizer, and
once more with words split at white space, which is as fast as it can be. Each of its four steps starts its processes;
that is in its time, as starting Ray's workers is in ours, and a cluster that is up is not.
"""

import argparse
import itertools
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter, defaultdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

SHINGLE, THRESHOLD, SLACK = 5, 0.8, 0.1
TARGETS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
PLANTED_SHARE = 0.2


# --- documents


def shingles(text: str) -> set[tuple[str, ...]]:
    """By the definition, and by nobody's code."""
    words = re.findall(r"[^\W_]+", text.lower())
    return {tuple(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))}


def similarity(one: set, other: set) -> float:
    """Jaccard's."""
    return len(one & other) / len(one | other) if one or other else 0.0


def pieces(count: int, rng: random.Random):
    """Documents: lines of source and text files, so many words at a time."""
    roots = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    files = [
        path
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.suffix in (".py", ".txt", ".rst", ".md") and (root != roots[0] or "site-packages" not in path.parts)
    ]
    rng.shuffle(files)
    found: list[str] = []
    for path in files:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        held: list[str] = []
        words, wanted = 0, rng.randint(60, 600)
        for line in lines:
            held.append(line)
            words += len(line.split())
            if words >= wanted:
                found.append("\n".join(held))
                held, words, wanted = [], 0, rng.randint(60, 600)
                if len(found) == count:
                    return found
    raise SystemExit(f"only {len(found):,} documents of text are installed here; ask for fewer with --documents")


def edited(text: str, target: float, vocabulary: list[str], rng: random.Random) -> str:
    """A copy of about this similarity: each changed word is in five shingles, which both texts then have alone."""
    parts = re.split(r"(\s+)", text)
    places = [place for place, part in enumerate(parts) if re.search(r"[^\W_]", part)]
    words = len(re.findall(r"[^\W_]+", text))
    changes = max(1, round(words * (1 - target) / (1 + target) / SHINGLE))
    for place in rng.sample(places, min(changes, len(places))):
        kind = rng.random()
        other = rng.choice(vocabulary)
        parts[place] = other if kind < 0.6 else f"{parts[place]} {other}" if kind < 0.8 else ""
    return "".join(parts)


def corpus(directory: Path, documents: int) -> tuple[list[str], list[tuple[int, int, float]]]:
    """Write two files of JSON Lines; gives the texts, and planted pairs with their true similarity."""
    rng = random.Random(0)
    texts = pieces(round(documents / (1 + PLANTED_SHARE)), rng)
    vocabulary = sorted({word for text in texts[:2000] for word in text.split() if word.isalpha()})
    originals = rng.sample(range(len(texts)), documents - len(texts))
    planted = []
    for number, original in enumerate(originals):
        copy = edited(texts[original], TARGETS[number % len(TARGETS)], vocabulary, rng)
        planted.append((original, len(texts)))
        texts.append(copy)
    order = list(range(len(texts)))
    rng.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    texts = [texts[old] for old in order]
    half = (len(texts) + 1) // 2
    for number, some in enumerate((texts[:half], texts[half:])):
        with (directory / f"{number:05d}.jsonl").open("w") as file:
            for at, text in enumerate(some):
                file.write(json.dumps({"id": str(number * half + at), "text": text}) + "\n")
    pairs = [(place[one], place[other]) for one, other in planted]
    return texts, [(one, other, similarity(shingles(texts[one]), shingles(texts[other]))) for one, other in pairs]


# --- sides: each gives seconds, and for documents that are like others the number of their cluster


def keys_of_file(path: Path, first: int, half: int, spec):
    """One process's share of the documents."""
    import numpy as np

    from maas_ray.data.dedup.minhash import band_keys_of

    with path.open() as file:
        texts = [json.loads(line)["text"] for line in itertools.islice(file, half)]
    places, keys = band_keys_of(texts, spec)
    return np.repeat(places + first, keys.shape[1]), keys.reshape(-1)


def linked(columns):
    """Edges of one range of keys."""
    import numpy as np

    from maas_ray.data.dedup.components import edges

    ids, keys = columns
    return np.column_stack(edges(keys, ids, ids))


def in_processes(directory: Path, spec, half: int) -> tuple[float, dict[int, int]]:
    """The pure functions in two processes."""
    import numpy as np

    from maas_ray.data.dedup.components import components, representatives

    with get_context("spawn").Pool(2) as pool:
        pool.map(linked, [(np.arange(2), np.zeros(2, np.uint64))] * 4)  # imports
        began = time.perf_counter()
        files = [(directory / f"{number:05d}.jsonl", number * half, half, spec) for number in range(2)]
        ids, keys = (np.concatenate(some) for some in zip(*pool.starmap(keys_of_file, files), strict=True))
        upper = keys >= np.uint64(1 << 63)
        pairs = np.concatenate(pool.map(linked, [(ids[part], keys[part]) for part in (upper, ~upper)]))
        rows, labels = components(pairs)
        kept = representatives(rows, labels, rows)
        seconds = time.perf_counter() - began
    return seconds, dict(zip(rows.tolist(), kept.tolist(), strict=True))


def on_ray(directory: Path, spec, half: int) -> tuple[float, dict[int, int]]:
    """The steps of `prepare` that decide about documents."""
    from maas_ray import PrepareSpec
    from maas_ray.data.pipeline import build
    from maas_ray.data.pipeline.blocks import quiet, tables
    from maas_ray.data.pipeline.input import inspect_input, parts_of
    from maas_ray.data.pipeline.rows import PART_BITS, paths_of, unsealed
    from maas_ray.data.plan import list_sources

    prepare = PrepareSpec.parse(
        {
            "dataset": "bench-dedup",
            "task": {"type": "text-generation"},
            "sources": [{"format": "jsonl", "path": str(directory), "include": ["*.jsonl"]}],
            "deduplicate": {"near": spec.document()},
            "splits": {"validation": 0, "test": 0},
        }
    )
    began = time.perf_counter()
    files = list_sources(prepare)
    size = sum(file.size for some in files for file in some)
    with quiet(size), tempfile.TemporaryDirectory() as home:
        inspected = inspect_input(prepare, files, None)
        parts, rows = parts_of(prepare, inspected), sum(file.rows for some in inspected for file in some)
        cache, groups = build._cut(parts, inspected, home, None, None)
        blocks = build._read(prepare, groups, rows, len(parts) << PART_BITS, cache, None)
        seconds = time.perf_counter() - began
        found, places = {}, {}
        wanted = ("row", "like", "file", "path", "position")
        for table in (table for block in tables(blocks) for table in unsealed(block, wanted)):
            columns = (table[name].to_pylist() for name in ("position", "row", "like"))
            for path, position, row, like in zip(paths_of(table).to_pylist(), *columns, strict=True):
                number = int(Path(path).stem) * half + position - 1  # lines count from 1
                places[row] = number
                if like is not None:
                    found[number] = like
    return seconds, {number: places[like] for number, like in found.items()}


def of_datatrove(python: str, directory: Path, words: str, arguments) -> tuple[float, dict[int, int]]:
    """datatrove in an environment of its own."""
    output = Path(tempfile.mkdtemp(prefix=f"{words}-", dir=directory.parent))  # a finished task is not run again
    command = [python, __file__, "--inside", str(directory), str(output), words]
    command += ["--bands", str(arguments.bands), "--rows", str(arguments.rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    report = json.loads(done.stdout.splitlines()[-1])
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["steps"].items())
    print(f"  datatrove {report['version']}, {words}: {steps}")
    return sum(report["steps"].values()), {int(one): other for one, other in report["clusters"].items()}


def inside_datatrove(directory: Path, output: Path, words: str, bands: int, rows: int) -> None:
    """The part that runs in datatrove's environment."""
    import struct
    from importlib.metadata import version

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.typeshelper import Languages
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Split(WordTokenizer):
        """At white space, which is all that is left between words."""

        def word_tokenize(self, text):
            return text.split()

        sent_tokenize = span_tokenize = None  # not asked for

    config = MinhashConfig(
        n_grams=SHINGLE,
        num_buckets=bands,
        hashes_per_bucket=rows,
        norm_config=TextNormConfig(norm_numbers=False),  # a number is a word, as for us
    )
    reader = JsonlReader(str(directory), glob_pattern="*.jsonl")
    language = Languages.english if words == "spacy" else Split()
    folders = {name: str(output / name) for name in ("signatures", "buckets", "remove", "kept", "logs")}
    steps = {
        "signatures": (2, [reader, MinhashDedupSignature(folders["signatures"], config, language)]),
        "buckets": (bands, [MinhashDedupBuckets(folders["signatures"], folders["buckets"], config=config)]),
        "cluster": (1, [MinhashDedupCluster(folders["buckets"], folders["remove"], config, save_cluster_id=True)]),
        "filter": (2, [reader, MinhashDedupFilter(folders["remove"]), JsonlWriter(folders["kept"], compression=None)]),
    }
    seconds = {}
    for name, (tasks, pipeline) in steps.items():
        began = time.perf_counter()
        logs = f"{folders['logs']}/{name}"
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=min(tasks, 2), logging_dir=logs).run()
        seconds[name] = time.perf_counter() - began
    half = sum(1 for _ in (directory / "00000.jsonl").open())
    clusters = {}
    for path in Path(folders["remove"]).glob("*.clusters"):
        for document, cluster in struct.iter_unpack("<2I", path.read_bytes()):
            clusters[int(path.stem) * half + document] = cluster
    print(json.dumps({"version": version("datatrove"), "steps": seconds, "clusters": clusters}))


# --- what came of it


def found_pairs(planted: list[tuple[int, int, float]], clusters: dict[int, int]) -> list[bool]:
    """For each planted pair of the threshold's similarity or more: whether both are in one cluster."""
    near = [(one, other) for one, other, true in planted if true >= THRESHOLD]
    return [one in clusters and clusters[one] == clusters.get(other) for one, other in near]


def difference(ours: list[bool], theirs: list[bool]) -> str:
    """The difference of two recalls on the same pairs, with its 95 % interval for matched proportions.

    Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions": Wald's interval
    after half a pair is added to each of the four cells, which is right for few pairs that differ, also for none.
    """
    alone = sum(one and not other for one, other in zip(ours, theirs, strict=True))
    missed = sum(other and not one for one, other in zip(ours, theirs, strict=True))
    count, more, fewer = len(ours) + 2, alone + 0.5, missed + 0.5
    middle = (more - fewer) / count
    wide = 1.96 * math.sqrt(more + fewer - (more - fewer) ** 2 / count) / count
    return (
        f"recall {sum(ours) / len(ours):.4f} against {sum(theirs) / len(theirs):.4f}, difference "
        f"{(alone - missed) / len(ours):+.4f} (95 % interval {middle - wide:+.4f} to {middle + wide:+.4f}; "
        f"of {len(ours):,} pairs {alone} were found by ours alone, {missed} by theirs alone)"
    )


def judged(texts: list[str], planted: list[tuple[int, int, float]], clusters: dict[int, int]) -> str:
    """Recall on planted pairs by similarity, and precision.

    A document is rightly removed if some other of its cluster has at least the threshold's similarity less SLACK. The
    kept one may be further: chains are joined by either side.
    """
    joined = Counter[float]()
    total = Counter[float]()
    for one, other, true in planted:
        level = min(int(true * 10) / 10, 0.9)
        total[level] += 1
        joined[level] += one in clusters and clusters[one] == clusters.get(other)
    near = found_pairs(planted, clusters)
    recall = sum(near) / len(near)
    members = defaultdict(list)
    for document, cluster in clusters.items():
        members[cluster].append(document)
    right = removed = 0
    for some in members.values():
        sets = [shingles(texts[document]) for document in some]
        alike = [
            any(similarity(own, other) >= THRESHOLD - SLACK for at, other in enumerate(sets) if at != place)
            for place, own in enumerate(sets)
        ]
        removed += len(some) - 1
        right += min(sum(alike), len(some) - 1)
    levels = "  ".join(f"{one:.1f}: {joined[one] / total[one]:.3f} of {total[one]:,}" for one in sorted(total))
    precision = f"removed {removed:,}, of these alike {right / max(removed, 1):.4f}"
    return f"recall {recall:.4f} of {len(near):,}  {precision}\n    by similarity {levels}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datatrove", help="the Python of an environment that has it")
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--bands", type=int, default=14)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--words", nargs="+", choices=["spacy", "split"], default=["spacy", "split"])
    parser.add_argument("--rounds", type=int, default=1, help="times that all sides take turns")
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        directory, output, words = arguments.inside
        inside_datatrove(Path(directory), Path(output), words, arguments.bands, arguments.rows)
        return
    from maas_ray.data.dedup.minhash import NearDuplicates

    spec = NearDuplicates(
        threshold=THRESHOLD, permutations=arguments.bands * arguments.rows, bands=arguments.bands, shingle=SHINGLE
    )
    with tempfile.TemporaryDirectory(prefix="maas-bench-", ignore_cleanup_errors=True) as name:
        directory = Path(name) / "documents"
        directory.mkdir()
        texts, planted = corpus(directory, arguments.documents)
        half = (len(texts) + 1) // 2
        size = sum(map(len, texts))
        print(f"{len(texts):,} documents, {size / 1e6:,.0f} MB, {len(planted):,} planted")
        print(f"load {os.getloadavg()[0]:.1f}")
        sides = {"two processes": partial(in_processes, directory, spec, half)}
        if not arguments.without_ray:
            sides["prepare"] = partial(with_cluster, name, partial(on_ray, directory, spec, half))
        if arguments.datatrove:
            for words in arguments.words:
                sides[f"datatrove, {words}"] = partial(of_datatrove, arguments.datatrove, directory, words, arguments)
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        found: dict[str, list[bool]] = {}
        for number in range(arguments.rounds):
            for side, run in sides.items():
                seconds, clusters = run()
                speeds[side].append(len(texts) / seconds)
                print(f"{side}: {speeds[side][-1]:,.0f} documents/s ({seconds:.1f} s)", flush=True)
                if not number:
                    print(f"    {judged(texts, planted, clusters)}")
                    found[side] = found_pairs(planted, clusters)
        for ours, theirs in itertools.product(("prepare", "two processes"), sides):
            if ours in sides and theirs.startswith("datatrove"):
                ratios = [one / other for one, other in zip(speeds[ours], speeds[theirs], strict=True)]
                print(
                    f"{ours} ÷ {theirs}: {statistics.median(ratios):.2f} × documents/s (lowest {min(ratios):.2f}, "
                    f"highest {max(ratios):.2f})\n    {difference(found[ours], found[theirs])}"
                )
        print(f"load {os.getloadavg()[0]:.1f}")


def with_cluster(home: str, run):
    """On a cluster of its own."""
    os.environ["MAAS_HOME"] = f"{home}/home"
    import ray

    from maas_ray import cluster
    from maas_ray.settings import Settings

    settings = Settings.from_environment()
    try:
        cluster.connect(settings)
        return run()
    finally:
        ray.shutdown()  # this process would not outlive its cluster
        cluster.down(settings)


if __name__ == "__main__":
    main()
