"""Growth of datasets and the cache of interrupted work, without a cluster."""

import os
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from maas_ray import storage
from maas_ray.data.pipeline import resume_cache
from maas_ray.data.pipeline.growth import Parent, growth_fingerprint, inputs_of, recipe_of, refusal
from maas_ray.data.pipeline.index import OLD, dropped_survivors, keys_of_old_rows, write_index
from maas_ray.data.pipeline.objects import packed, unpacked
from maas_ray.data.pipeline.resume_cache import READ, ResumeCache, cached
from maas_ray.data.pipeline.rows import DUPLICATE, KEPT, NEAR_DUPLICATE, PART_BITS, ROWS, sealed
from maas_ray.data.plan import PIPELINE
from maas_ray.data.reading import Inspected
from maas_ray.data.sources import InputFile
from maas_ray.data.spec import PrepareSpec
from maas_ray.data.splits.hashing import SPLIT_BITS
from maas_ray.errors import CorruptError, NotFoundError
from maas_ray.spec import digest_of
from tests.support.errors import raises


def seen(relative: str, sha256: str = "1") -> Inspected:
    return Inspected(InputFile(f"/in/{relative}", relative, 10), sha256, "stamp", 3)


def parent_of(*numbered: list[Inspected], parts: dict[tuple[int, str], int]) -> Parent:
    parent = Parent.__new__(Parent)
    parent.inputs = inputs_of(list(numbered), Counter(parts))
    return parent


def test_the_difference_of_two_inputs_goes_by_source_path_and_content() -> None:
    parent = parent_of([seen("a"), seen("b")], [seen("a", "9")], parts={})
    same = parent.compare([[seen("b"), seen("a")], [seen("a", "9")]])
    assert (same.new, same.reason) == ([[], []], "")
    # A file of another source is another file, though it is called and holds the same.
    more = parent.compare([[seen("a"), seen("b"), seen("c")], [seen("a", "9"), seen("b")], [seen("a")]])
    assert more.new == [[seen("c")], [seen("b")], [seen("a")]]
    assert more.reason == ""
    other = parent.compare([[seen("a", "2")], [seen("a", "9")]])
    assert (other.changed, other.gone) == (["a"], ["b"])
    assert other.reason == "a is changed and b is not there"
    none = parent.compare([[], []])
    assert none.reason == "a, a, b are not there"


def test_many_files_that_changed_are_not_all_named() -> None:
    names = [f"{number:02d}" for number in range(12)]
    parent = parent_of([seen(name) for name in names], parts={})
    assert parent.compare([[seen(name, "2") for name in names]]).reason == "00, 01, 02 and 9 more are changed"


def test_a_row_number_leads_to_its_file() -> None:
    parent = parent_of([seen("a"), seen("none"), seen("b")], parts={(0, "a"): 2, (0, "b"): 1})
    part = 1 << PART_BITS
    assert parent.paths_of([0, 5, part, 2 * part - 1, 2 * part, 2 * part + 7]) == ["/in/a"] * 4 + ["/in/b"] * 2


def spec_of(**changes: Any) -> PrepareSpec:
    return PrepareSpec.parse(
        {
            "dataset": "rows",
            "task": {"type": "tabular-classification", "target": "kind"},
            "sources": [{"format": "csv", "path": "a"}],
            **changes,
        }
    )


def refused(before: PrepareSpec, now: PrepareSpec, **meta: Any) -> str:
    recipe = digest_of(recipe_of(before, before.task.identity(), PIPELINE))
    known = {"recipe": recipe, "pipeline": PIPELINE, "spec": before.document()}
    dataset: Any = SimpleNamespace(meta=SimpleNamespace(**{**known, **meta}))
    return refusal(now, recipe_of(now, now.task.identity(), PIPELINE), dataset)


def test_a_dataset_grows_only_if_spec_and_old_files_are_unchanged() -> None:
    one = spec_of()
    two = [{"format": "csv", "path": "a"}, {"format": "csv", "path": "b"}]
    assert refused(one, one) == ""
    assert refused(one, spec_of(sources=two)) == ""
    assert refused(one, spec_of(), recipe="") == "it was prepared by an earlier version of maas_ray"
    assert refused(one, spec_of(seed=1), pipeline=PIPELINE - 1) == "it was prepared by an earlier version of maas_ray"
    assert refused(one, spec_of(), recipe="0") == "the code of its task or of a cleaning step differs"
    assert refused(one, spec_of(seed=1, splits={"test": 0.3})) == "the spec differs in `seed`, `splits`"
    assert refused(one, spec_of(keep=["name"])) == "the spec differs in `keep`"
    assert refused(spec_of(sources=two), one) == "the spec differs in `sources`"
    heavy = spec_of(sources=[{"format": "csv", "path": "a", "weight": 2}])
    assert refused(one, heavy) == "the spec differs in `sources`"


def test_the_fingerprint_of_a_grown_dataset_depends_on_its_parent() -> None:
    of = [growth_fingerprint({"seed": seed}, [new], parent) for seed in (0, 1) for new in "ab" for parent in "cd"]
    assert len({*of}) == 8
    assert growth_fingerprint({"seed": 0}, ["a"], "c") == of[0]


def rows_of(count: int, bands: int = 0) -> pa.Table:
    draw = np.random.default_rng(0)
    columns: dict[str, Any] = {name: pa.nulls(count, ROWS.field(name).type) for name in ROWS.names}
    columns |= {
        "row": np.arange(count) + (3 << PART_BITS),
        "key": np.sort(draw.integers(0, 3, count) << SPLIT_BITS | draw.integers(0, 1 << SPLIT_BITS, count)),
        "digest": pa.array([draw.bytes(32) for _ in range(count)], pa.binary(32)),
        "inputs": draw.integers(0, 1 << 62, count),
        "position": np.arange(count),
        "bands": pa.array([draw.bytes(8 * bands) for _ in range(count)], pa.binary()),
        "fate": pa.array([KEPT] * count),
    }
    return pa.table(columns, schema=ROWS)


def test_the_index_gives_back_the_keys_of_its_rows(tmp_path: Path) -> None:
    rows = rows_of(5, bands=2)
    # The last but one is nearly the same as the first; the last was left out.
    fate = [KEPT] * 3 + [NEAR_DUPLICATE, DUPLICATE]
    first = rows["row"][0].as_py()
    rows = rows.set_column(rows.schema.get_field_index("fate"), "fate", pa.array(fate))
    like = pa.array([first, None, None, first, first], pa.int64())
    rows = rows.set_column(rows.schema.get_field_index("like"), "like", like)
    (entry,) = unpacked(write_index(sealed(rows), str(tmp_path), "attempt"))
    keys = pa.concat_tables(keys_of_old_rows(packed([entry.path]), str(tmp_path)))
    exact = keys.filter(keys["exact"])
    digests = [np.frombuffer(digest, ">i8").tolist() for digest in rows["digest"].to_pylist()[:3]]
    assert list(zip(exact["key"].to_pylist(), exact["more"].to_pylist(), strict=True)) == [
        (d[0], d[1]) for d in digests
    ]
    assert exact["row"].to_pylist() == rows["row"].to_pylist()[:3]
    near = keys.filter(pa.compute.invert(keys["exact"]))
    bands = [np.frombuffer(some, np.int64).tolist() for some in rows["bands"].to_pylist()[:4]]
    assert near["key"].to_pylist() == [key for some in bands for key in some]
    # Bands of what was left out stand for the row that is kept in its place.
    assert near["row"].to_pylist() == [row for row in (first, first + 1, first + 2, first) for _ in range(2)]
    assert set(near["more"].to_pylist()) == {0}
    # Whatever rows come, one of before is kept in their place.
    assert [rank + OLD for rank in keys["rank"].to_pylist()] == keys["row"].to_pylist()
    assert max(keys["rank"].to_pylist()) < 0


def test_near_duplicates_of_dropped_rows_are_not_in_the_index(tmp_path: Path) -> None:
    rows = rows_of(3, bands=2)
    # The last is nearly the same as the first, which a fitted step then left out.
    first, second, _ = rows["row"].to_pylist()
    for name, values in (("fate", ["outliers: high", "", NEAR_DUPLICATE]), ("like", [first, None, first])):
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
    gone = dropped_survivors(rows)["row"].to_numpy()
    assert gone.tolist() == [first]
    (entry,) = unpacked(write_index(sealed(rows), str(tmp_path), "attempt", gone))
    keys = pa.concat_tables(keys_of_old_rows(packed([entry.path]), str(tmp_path)))
    assert set(keys["row"].to_pylist()) == {second}


def test_a_damaged_index_is_an_error(tmp_path: Path) -> None:
    (entry,) = unpacked(write_index(sealed(rows_of(100)), str(tmp_path), "attempt"))
    path = tmp_path / entry.path
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[: len(content) // 2])
    with raises(CorruptError, "index_corrupt", entry.path, "--fresh"):
        list(keys_of_old_rows(packed([entry.path]), str(tmp_path)))


def payloads(*values: Any) -> pa.Table:
    pickled = pa.array([*map(pickle.dumps, values)], pa.binary())
    return pa.table({"fate": [KEPT] * len(values), "shape": pa.nulls(len(values)), "payload": pickled})


def opened(home: Path, blocks: int = 4, *, chosen: bool = False, schema: str = "one") -> tuple[ResumeCache, int]:
    return ResumeCache.open(str(home), blocks, chosen=chosen, schema=schema)


def steps(home: Path, table: pa.Table) -> tuple[list[pa.Table], int]:
    """The tables that `cached` yields for a step that yields this table, and the number of runs of the step."""
    ran = []

    def step(_: pa.Table) -> Iterator[pa.Table]:
        ran.append(1)
        yield table.slice(0, 1)
        yield table.slice(1)

    return list(cached(table, step, lambda _: "block", READ, opened(home)[0])), len(ran)


def test_a_cached_step_runs_once(tmp_path: Path) -> None:
    table = payloads({"x": 1}, {"x": np.arange(3)}, {"x": np.float32(1)})
    first, ran = steps(tmp_path, table)
    again, ran_again = steps(tmp_path, table)
    assert (ran, ran_again) == (1, 0)
    assert first == again  # cut as they were
    assert opened(tmp_path)[0].count(READ) == 1
    resume_cache.remove(str(tmp_path))
    assert steps(tmp_path, table)[1] == 1


def kept_file(home: Path) -> Path:
    (path,) = home.glob("work/*/read/*.arrow")
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("damage", ["cut off", "other bytes", "empty", "gone"])
def test_a_damaged_cache_entry_is_computed_again(tmp_path: Path, damage: str) -> None:
    table = payloads({"x": 1}, {"x": 2})
    steps(tmp_path, table)
    before, _ = opened(tmp_path)
    path = kept_file(tmp_path)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut off": content[:middle], "other bytes": flipped, "empty": b""}[damage])
    assert before.load(READ, "block") is None
    found, ran = steps(tmp_path, table)
    assert ran == 1
    assert pa.concat_tables(found) == table


def test_a_step_that_fails_or_is_abandoned_caches_nothing(tmp_path: Path) -> None:
    def failing(_: pa.Table) -> Iterator[pa.Table]:
        yield payloads(1)
        raise OSError("gone")

    tables = cached(payloads(1), failing, lambda _: "block", READ, opened(tmp_path)[0])
    with pytest.raises(OSError, match="gone"):
        list(tables)
    left = opened(tmp_path)[0].store(READ, "block", iter([payloads(1), payloads(2)]))
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert opened(tmp_path)[0].names == {}


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_loading_a_malicious_cache_entry_runs_no_code(tmp_path: Path) -> None:
    """Its hash is right, as one who may write to the storage would see to."""
    table = payloads({"x": 1}, {"x": 2})
    steps(tmp_path, table)
    path, trace = kept_file(tmp_path), tmp_path / "trace"
    hostile = payloads({"x": 1}, Hostile(trace))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, hostile.schema) as writer:
        writer.write_table(hostile)
    content = sink.getvalue().to_pybytes()
    path.unlink()
    path.with_name(f"block-{xxhash.xxh3_128_hexdigest(content)}.arrow").write_bytes(content)
    assert opened(tmp_path)[0].names
    assert steps(tmp_path, table)[1] == 1
    assert not trace.exists()


def test_an_attempt_takes_over_the_cut_of_an_earlier_one_unless_it_chose_one(tmp_path: Path) -> None:
    steps(tmp_path, payloads(1))
    taken, blocks = opened(tmp_path, 9)
    assert (blocks, taken.count(READ)) == (4, 1)
    asked, blocks = opened(tmp_path, 9, chosen=True)
    assert (blocks, asked.names) == (9, {})
    # Rows of another form are of no use.
    other, blocks = opened(tmp_path, 9, schema="two")
    assert (blocks, other.names) == (9, {})


def test_a_copy_is_a_link_on_a_local_disk_and_another_file_elsewhere(tmp_path: Path) -> None:
    source = tmp_path / "one"
    source.write_bytes(b"content")
    storage.copy(str(source), str(tmp_path / "deep/two"))
    assert (tmp_path / "deep/two").samefile(source)
    away = f"memory://growth-{os.getpid()}"
    try:
        storage.copy(str(source), f"{away}/one")
        storage.copy(f"{away}/one", f"{away}/two")
        storage.delete(f"{away}/one")
        storage.copy(f"{away}/two", str(tmp_path / "three"))
    finally:
        storage.delete(away)
    assert (tmp_path / "three").read_bytes() == b"content"
    with pytest.raises(NotFoundError):
        storage.copy(str(tmp_path / "none"), str(tmp_path / "four"))
