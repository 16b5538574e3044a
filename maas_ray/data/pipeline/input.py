"""The input as work for the cluster: files to inspect, and the parts that they are read in, grouped into blocks."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

import pyarrow as pa
import ray

from maas_ray.data.pipeline.blocks import BLOCK_BYTES, Blocks, objects, run, stage
from maas_ray.data.pipeline.objects import packed, unpacked
from maas_ray.data.pipeline.read_rows import inspect_files, reading_of
from maas_ray.data.reading import Inspected, Part
from maas_ray.data.sources import AnySource, InputFile
from maas_ray.data.spec import PrepareSpec

# A block of its own is worth at least so many bytes. Opening a file costs as much as reading some bytes more.
_MIN_BYTES, _OPEN_BYTES = 4 << 20, 4 << 10


def inspect_input(
    spec: PrepareSpec,
    files: list[list[InputFile]],
    parallelism: int | None,
    before: Mapping[tuple[int, str], Inspected] | None = None,
) -> list[list[Inspected]]:
    """Inspect every file of every source on the cluster.

    Args:
        spec: the sources and the columns that are needed.
        files: the files of each source.
        parallelism: number of blocks. None: by size and cluster.
        before: earlier inspections, by source and path. A file whose stamp is unchanged is not read.
    """
    before = before or {}
    items = [(number, file, _same(before, number, file)) for number, source in enumerate(files) for file in source]
    sizes = [0 if known is not None else file.size for _, file, known in items]
    groups = grouped(items, sizes, block_count(sizes, parallelism))
    inspected: list[list[Inspected]] = [[] for _ in files]
    step = partial(inspect_files, sources=spec.sources, columns=reading_of(spec).names)
    with stage("inspecting the input", len(items)) as bar:
        for number, file in objects(run(put(groups), step, lambda _, done: bar.update(done))):
            inspected[number].append(file)
    return inspected


def _same(before: Mapping[tuple[int, str], Inspected], number: int, file: InputFile) -> Inspected | None:
    known = before.get((number, file.relative))
    return known if known is not None and known.file == file else None


class SizedPart(NamedTuple):
    """A part of a file, its source's number, and its size in bytes."""

    source: int
    part: Part
    size: int


def parts_of(spec: PrepareSpec, inspected: list[list[Inspected]]) -> list[SizedPart]:
    """All parts that the files are read in. Files of series stay whole."""
    return [
        SizedPart(number, part, size)
        for number, (source, files) in enumerate(zip(spec.sources, inspected, strict=True))
        for file in files
        for part, size in _cut(source, file, whole=spec.task.steps is not None)
    ]


def _cut(source: AnySource, file: Inspected, *, whole: bool) -> Iterator[tuple[Part, int]]:
    """A file's parts with their sizes in bytes. A file is cut between its groups, unless it must stay whole."""
    if not file.groups:
        yield Part(source, file), file.file.size
        return
    bytes_per_row = file.file.size / max(1, file.rows)
    start = rows_so_far = 0
    for group, count in enumerate(file.groups):
        rows_so_far += count
        if (rows_so_far * bytes_per_row >= BLOCK_BYTES and not whole) or group == len(file.groups) - 1:
            yield Part(source, file, range(start, group + 1)), int(rows_so_far * bytes_per_row)
            start, rows_so_far = group + 1, 0


def digest_of_cut(inspected: list[list[Inspected]]) -> str:
    """Sha256 of everything that decides how files are cut into parts."""
    digest = sha256()
    for number, files in enumerate(inspected):
        for file in files:
            cut = number, file.file.relative, file.sha256, file.groups, file.places
            digest.update(repr(cut).encode(errors="replace"))
    return digest.hexdigest()


def first_part(block: pa.Table) -> str:
    """The name of a block of parts: the number of its first part."""
    number, _ = next(unpacked(block))
    return f"{number:08d}"


def block_count(sizes: list[int], parallelism: int | None) -> int:
    """The number of blocks for items of these sizes in bytes."""
    if parallelism is not None:
        return parallelism
    total = sum(sizes) + _OPEN_BYTES * len(sizes)
    processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return max(1, math.ceil(total / BLOCK_BYTES), min(processors, math.ceil(total / _MIN_BYTES)))


def grouped(items: list[Any], sizes: list[int], blocks: int) -> list[list[Any]]:
    """Items in order, in groups of about the same size: a group for each block."""
    weights = [size + _OPEN_BYTES for size in sizes]
    total = sum(weights)
    groups: list[list[Any]] = [[] for _ in range(blocks)]
    before = 0
    for item, weight in zip(items, weights, strict=True):
        groups[before * blocks // total].append(item)
        before += weight
    return [group for group in groups if group]


def put(groups: list[list[Any]]) -> Blocks:
    """Groups of items as blocks in the object store."""
    return [ray.put(packed(group)) for group in groups]
