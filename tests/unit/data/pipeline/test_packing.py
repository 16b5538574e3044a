"""The steps from files to shards, run on blocks cut at random: the result must not depend on the cuts."""

import io
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from maas_ray.data.dedup.normalise import normalised
from maas_ray.data.dedup.survivors import Decisions, exact_duplicates, exact_keys
from maas_ray.data.names import SPLITS
from maas_ray.data.pipeline import global_steps, ordering, packing, row_steps
from maas_ray.data.pipeline.objects import packed, unpacked
from maas_ray.data.pipeline.read_rows import Reading, read_rows
from maas_ray.data.pipeline.removed import write_quarantine
from maas_ray.data.pipeline.rows import PART_BITS, paths_of, sealed
from maas_ray.data.reading import Part, inspect
from maas_ray.data.shards import to_numpy
from maas_ray.data.sources import AnySource, AudioFolderSource, ImageFolderSource, JsonlSource, TextSource, list_files
from maas_ray.data.splits.spec import Splits
from maas_ray.errors import DataError
from maas_ray.tasks import AnyTaskSpec, Task
from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognitionSpec
from maas_ray.tasks.text.generation import TextGenerationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from maas_ray.tasks.vision.classification import ImageClassificationSpec
from maas_ray.terminal.lines import progress
from tests.support import speech, tokenizer_families
from tests.support.errors import raises

TEXT = TextGenerationSpec(tokenizer=FittedTokenizer(vocab_size=300), sequence_length=32)


@dataclass
class Result:
    task: Task
    sizes: packing.Sizes
    plan: packing.Plan
    tables: list[pa.Table]
    columns: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    groups: dict[str, list[int]] = field(default_factory=dict)


def blocks(table: pa.Table, rng: random.Random, pieces: int) -> list[pa.Table]:
    """The rows in any order, cut anywhere."""
    table = table.take(rng.sample(range(len(table)), len(table)))
    cuts = sorted(rng.choices(range(len(table) + 1), k=pieces - 1))
    return [table[low:high] for low, high in zip([0, *cuts], [*cuts, len(table)], strict=True)]


def ranges(tables: list[pa.Table], key: str, boundaries: list[int]) -> list[pa.Table]:
    """The result of a distributed sort: one table for each range of keys."""
    table = pa.concat_tables(tables)
    numbers = np.searchsorted(boundaries, table[key].to_numpy(), side="right")
    found = [table.filter(pa.array(numbers == number)).sort_by(key) for number in range(len(boundaries) + 1)]
    return [table for table in found if len(table)]


@contextmanager
def without_a_cluster() -> Iterator[None]:
    """The calls of Ray by which rows are ordered and tasks are fitted, in this process. A reference is the block."""

    def run(blocks: list[pa.Table], step: Any, watch: Any = None) -> list[pa.Table]:
        results = ([found] if isinstance(found := step(block), pa.Table) else list(found) for block in blocks)
        return [table for some in results if len(table := pa.concat_tables(some))]

    def run_over(blocks: list[pa.Table], step: Any) -> list[pa.Table]:
        done = run(blocks, step)
        blocks.clear()
        return done

    def run_sorted(blocks: list[pa.Table], key: str, boundaries: list[int], step: Any) -> list[pa.Table]:
        return run(ranges(blocks, key, boundaries) if blocks else [], step)

    def objects(blocks: list[pa.Table]) -> Iterator[Any]:
        return chain.from_iterable(map(unpacked, blocks))

    def records(blocks: list[pa.Table]) -> Iterator[dict[str, Any]]:
        return chain.from_iterable(block.to_pylist() for block in blocks)

    def total_bytes(blocks: list[pa.Table]) -> int:
        return sum(block.nbytes for block in blocks)

    calls = {"run": run, "tables": iter}
    ray = SimpleNamespace(put=lambda block: block, get=lambda block: block)
    with (
        patch.multiple(global_steps, objects=objects, **calls),
        patch.multiple(
            ordering,
            ray=ray,
            records=records,
            run_over=run_over,
            run_sorted=run_sorted,
            total_bytes=total_bytes,
            **calls,
        ),
    ):
        yield


def settle(rows: pa.Table, *, exact: bool = True) -> pa.Table:
    """Rows as they are decided if nothing but exact duplicates is in question."""
    duplicates = exact_duplicates(exact_keys(rows)).sort_by("row")
    return row_steps.settled(rows, Decisions(), duplicates if exact else None)


def reading_of(task_spec: AnyTaskSpec, shares: tuple[float, float] = (0.0, 0.0)) -> Reading:
    return Reading(task_spec, Splits(validation=shares[0], test=shares[1]))


def run(
    source: AnySource, task_spec: AnyTaskSpec, uri: Path, *, cut: int, shares: tuple[float, float] = (0.2, 0.1)
) -> Result:
    rng = random.Random(cut)
    parts = [Part(source, inspect(source, file, task_spec.columns)) for file in list_files(source)]
    rng.shuffle(parts)
    read = pa.concat_tables(read_rows(packed(enumerate(parts)), reading_of(task_spec, shares)))
    tables = [table for table in blocks(settle(read), rng, cut) if len(table)]
    with without_a_cluster(), progress("", None) as bar:
        task = global_steps.fit_task(task_spec, list(map(sealed, tables)), bar)
        files = packing.saved(task)
        chunks = [chunk for table in tables for chunk in packing.encode(table, files, task_spec)]
        listed = [row for chunk in chunks for row in packing.listing(chunk).to_pylist()]
        plan, sizes = packing.plan_of(rng.sample(listed, len(listed)), task, seed=0)
        entries = [table for chunk in chunks for table in ordering.entries_of(chunk)]
        ends = ordering.ends_of_rows(entries, tuple(sizes.rows.values()), len(parts) << PART_BITS)
        pieces = [table for chunk in rng.sample(chunks, len(chunks)) for table in packing.pack(chunk, plan, ends)]
    shards = [packing.layout(split, plan, "attempt") for split in range(len(SPLITS))]
    entries = {}
    for split, some in enumerate(shards):
        base = plan.base(split)
        for shard in some:
            starts = [base + row for row in packing.parts_of(shard, plan.row_bytes)]
            last = base + shard.start + shard.rows
            mine = [table for table in ranges(pieces, "place", [*starts, last]) if table["place"][0].as_py() in starts]
            entries[shard.path] = packing.write_shard(mine, plan, split, shard, str(uri))
    result = Result(task, sizes, plan, tables)
    for split, some in zip(SPLITS, shards, strict=True):
        stored = []
        for shard in some:
            file = pa.parquet.ParquetFile(uri / shard.path, page_checksum_verification=True)
            assert entries.pop(shard.path).size == (uri / shard.path).stat().st_size
            assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == list(shard.row_groups)
            stored.append(file.read())
        if stored:
            table = pa.concat_tables(stored)
            result.columns[split] = to_numpy(table, task.stored) | {"position": table["position"].to_numpy()}
            result.groups[split] = [rows for shard in some for rows in shard.row_groups]
    assert not entries
    return result


def same(one: Result, other: Result) -> bool:
    return one.sizes == other.sizes and all(
        np.array_equal(one.columns[split][name], other.columns[split][name])
        for split in one.columns
        for name in one.columns[split]
    )


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """200 documents of 0 to 400 words, some equal, one that spells the end-of-text token out."""
    rng = random.Random(0)
    words = ["def", "return", "import", "für", "日本", "\n\n", "  ", "x = 1", "<|endoftext|>"]
    directory = tmp_path / "in"
    directory.mkdir()
    for number in range(200):
        text = " ".join(rng.choices(words, k=rng.choice([0, 1, 5, 40, 400])))
        (directory / f"{number}.txt").write_text(text, encoding="utf-8")
    (directory / "latin.txt").write_bytes("für".encode("latin-1"))
    return directory


def test_packed_rows_in_order_are_the_documents(documents: Path, tmp_path: Path) -> None:
    result = run(TextSource(path=str(documents)), TEXT, tmp_path / "out", cut=5)
    end = result.task.end_of_text_id  # type: ignore[attr-defined]
    texts = {path.read_bytes().decode(errors="replace") for path in documents.iterdir()}
    expected = {text for text in texts if text.strip() and "�" not in text}
    found: list[str] = []
    lost = 0
    for number, split in enumerate(SPLITS):
        columns = result.columns[split]
        assert np.array_equal(columns["index"], np.arange(result.plan.rows[number]))
        order = np.argsort(columns["position"])
        assert np.array_equal(columns["position"][order], np.arange(len(order)))
        tokens = columns["input_ids"][order].reshape(-1)
        left = result.sizes.elements[split] - len(tokens)
        assert 0 <= left < TEXT.sequence_length
        *whole, partial = np.split(tokens, np.flatnonzero(tokens == end) + 1)
        found += [result.task.tokenizer.decode(ids[:-1].tolist()) for ids in whole]  # type: ignore[attr-defined]
        # Only the last partial sequence is left out: the documents in it, and the end of one before.
        assert len(partial) == 0 or left
        lost += result.sizes.rows[split] - len(whole)
    assert len(found) == len(set(found))
    assert set(found) <= expected
    assert len({normalised(text) for text in expected}) == len(found) + lost
    assert lost < 3 * TEXT.sequence_length


def test_shards_do_not_depend_on_how_rows_are_cut_into_blocks(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TextSource(path=str(documents))
    one = run(source, TEXT, tmp_path / "one", cut=1)
    assert one.sizes.rows["train"] > 50
    for cut in (2, 7, 20):
        monkeypatch.setattr(ordering, "RANGE_BYTES", 10_000 // cut)  # several ranges of keys
        monkeypatch.setattr(packing, "_BATCH_ROWS", 3 * cut)
        monkeypatch.setattr(packing, "_SHARD_BYTES", 4096)
        assert same(one, run(source, TEXT, tmp_path / str(cut), cut=cut)), cut


def test_stored_columns_of_chats_stay_beside_their_tokens(tmp_path: Path) -> None:
    """The beginnings of chats, and the bytes of tokens that do not spell their text."""
    chats = [
        [{"role": "user", "content": f"Grüße {n} 東京"}, {"role": "assistant", "content": f"It is {n}. " * n}]
        for n in range(1, 30)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    tokenizer = tokenizer_families.save("llama_2", tmp_path / "tokenizer", chat_template=template)
    spec = TextGenerationSpec(tokenizer=str(tokenizer), sequence_length=32, column="messages")
    source = JsonlSource(path=str(tmp_path / "chats.jsonl"))
    results = [run(source, spec, tmp_path / f"out-{cut}", cut=cut, shares=(0.0, 0.0)) for cut in (1, 3)]
    assert same(*results)
    columns = results[0].columns["train"]
    assert set(columns) == {"input_ids", "begins", "bytes", "index", "position"}
    order = np.argsort(columns["position"])
    ids, begins, counts = (columns[name][order].reshape(-1) for name in ("input_ids", "begins", "bytes"))
    starts = [*np.flatnonzero(begins).tolist(), len(ids)]
    # The last row of the split is not full, so the last chats are not stored whole.
    assert starts[0] == 0
    assert len(starts) > len(chats) - 2
    texts = {"".join(f"{m['role']}: {m['content']}" for m in chat): chat for chat in chats}
    for start, end in pairwise(starts[:-1]):
        text = results[0].task.tokenizer.decode(ids[start:end].tolist(), skip_special_tokens=True)
        assert text in {text.replace("assistant", " assistant") for text in texts}  # Llama 2: a space after `</s>`
        assert counts[start:end].sum() == len(text.replace(" assistant", "assistant").encode())
        assert ids[start:end].tolist().count(results[0].task.end_of_text_id) == 2  # one after each turn


def test_documents_longer_than_chunks_and_shards_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that spans many sequences, chunks of one row each, shards of one row group each."""
    monkeypatch.setattr(packing, "_BATCH_ROWS", 1)
    monkeypatch.setattr(packing, "_SHARD_BYTES", 1)
    (tmp_path / "in").mkdir()
    texts = [f"{number} " * size for number, size in enumerate([1, 5000, 3, 1, 1, 900])]
    for text in texts:
        (tmp_path / "in" / f"{text[0]}.txt").write_text(text)
    source = TextSource(path=str(tmp_path / "in"))
    result = run(source, TEXT, tmp_path / "out", cut=3, shares=(0.0, 0.0))
    columns = result.columns["train"]
    tokens = columns["input_ids"][np.argsort(columns["position"])].reshape(-1)
    text = result.task.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)  # type: ignore[attr-defined]
    *whole, partial = text.split("<|endoftext|>")
    missing = set(texts) - set(whole)
    assert len(whole) == len(texts) - len(missing)
    assert not missing or any(text.startswith(partial) for text in missing)


def test_every_row_has_an_outcome(documents: Path, tmp_path: Path) -> None:
    result = run(TextSource(path=str(documents)), TEXT, tmp_path / "out", cut=4)
    counts = {row["fate"]: 0 for table in result.tables for row in row_steps.tally(table).to_pylist()}
    for table in result.tables:
        for row in row_steps.tally(table).to_pylist():
            counts[row["fate"]] += row["rows"]
    assert set(counts) == {"", "empty", "duplicate", "quarantined"}
    assert sum(counts.values()) == 201
    assert counts["quarantined"] == 1
    assert counts[""] == sum(result.sizes.rows.values())


def test_quarantine_holds_path_position_and_error(documents: Path, tmp_path: Path) -> None:
    result = run(TextSource(path=str(documents)), TEXT, tmp_path / "out", cut=4)
    files = [
        entry
        for table in result.tables
        for entry in unpacked(write_quarantine(sealed(table), str(tmp_path), "attempt"))
    ]
    (row,) = pa.parquet.read_table(tmp_path / files[0].path).to_pylist()
    assert row == {
        "path": str(documents / "latin.txt"),
        "position": 0,
        "rows": 1,
        "error": "not UTF-8: byte 0xfc at 1",
        "excerpt": b"f\xfcr",
    }


def test_a_file_name_that_is_not_utf8_does_not_stop_the_run(tmp_path: Path) -> None:
    os.makedirs(tmp_path / "a")
    for name in (b"a/caf\xe9.png", b"a/b.png"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"no image")
    source = ImageFolderSource(path=f"file://{tmp_path}")
    spec = ImageClassificationSpec()
    parts = [Part(source, inspect(source, file, spec.columns)) for file in list_files(source)]
    (table,) = read_rows(packed(enumerate(parts)), reading_of(spec))
    assert sorted(paths_of(table).to_pylist()) == [f"{tmp_path}/a/b.png", f"{tmp_path}/a/caf\\udce9.png"]
    assert set(table["error"].to_pylist()) == {"not an image of any known format"}


def test_errors_that_differ_only_in_numbers_are_counted_together(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_bytes(b"x" * number + b"\xff")
    source = TextSource(path=str(tmp_path))
    parts = [Part(source, inspect(source, file, TEXT.columns)) for file in list_files(source)]
    (table,) = read_rows(packed(enumerate(parts)), reading_of(TEXT))
    (row,) = row_steps.tally(table).to_pylist()
    assert row["rows"] == 5
    assert row["kind"] == "not UTF-#: byte # at #"


def image(value: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(data, "PNG")
    return data.getvalue()


def test_images_keep_their_labels_and_equal_images_their_split(tmp_path: Path) -> None:
    for value in range(200):
        # Every image stands under two labels: two rows, which must never straddle splits.
        for label in (str(value % 2), "2"):
            path = tmp_path / "in" / label / f"{value}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(value))
    source = ImageFolderSource(path=str(tmp_path / "in"))
    result = run(source, ImageClassificationSpec(), tmp_path / "out", cut=3)
    assert same(result, run(source, ImageClassificationSpec(), tmp_path / "again", cut=8))
    seen = {}
    for split, columns in result.columns.items():
        assert columns["pixel_values"].shape[1:] == (1, 4, 4)
        assert np.array_equal(columns["index"], np.arange(result.sizes.rows[split]))
        assert len(result.groups[split]) >= 10
        for pixels, label in zip(columns["pixel_values"], columns["label"], strict=True):
            value = int(pixels[0, 0, 0])
            assert label in (value % 2, 2)
            assert seen.setdefault(value, split) == split
    assert len(seen) == 200


def test_a_row_whose_label_is_not_in_training_is_dropped(tmp_path: Path) -> None:
    lines = [f'{{"image": "{value}.png", "label": "{value % 2}"}}' for value in range(40)]
    for value in range(41):
        (tmp_path / f"{value}.png").write_bytes(image(value))
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, '{"image": "40.png", "label": "rare"}']))
    source = JsonlSource(path=str(tmp_path / "rows.jsonl"))
    # The rare row's split is decided by its image; hold so much out that it is not in training.
    for share in (0.3, 0.6, 0.9):
        result = run(source, ImageClassificationSpec(), tmp_path / f"out{share}", cut=2, shares=(share, 0.0))
        labels = result.task.features.labels  # type: ignore[attr-defined]
        if "rare" not in labels:
            break
    assert result.sizes.dropped == {"label 'rare' does not occur in the training split": 1}
    assert sum(result.sizes.rows.values()) == 40


def test_less_than_one_sequence_to_train_on_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    with raises(DataError, "nothing_to_train_on", "2 tokens", 32):
        run(TextSource(path=str(tmp_path)), TEXT, tmp_path / "out", cut=1, shares=(0.0, 0.0))


@pytest.mark.parametrize(
    ("rows", "length", "groups", "shards"),
    [(1, 512, 1, 1), (16, 512, 16, 1), (1000, 512, 16, 1), (100_000, 512, 49, 2), (1_000_000, 512, 489, 16)],
)
def test_layout_cuts_a_split_into_shards_and_row_groups(rows: int, length: int, groups: int, shards: int) -> None:
    task = TEXT.fit([{"text": "x"}])
    plan = packing.Plan(task.stored, length, True, (rows * length, 0, 0), (rows, 0, 0), ("", "", ""))
    found = packing.layout(0, plan, "a1")
    assert len(found) == shards
    assert sum(len(shard.row_groups) for shard in found) == groups
    assert sum(shard.rows for shard in found) == rows
    assert [shard.start for shard in found] == [sum(s.rows for s in found[:n]) for n in range(len(found))]
    assert len({shard.path for shard in found}) == shards
    assert packing.layout(1, plan, "a1") == []


def test_an_error_lists_the_reasons_if_every_row_is_dropped(tmp_path: Path) -> None:
    for number, said in enumerate(("one two three", "four five six seven")):
        (tmp_path / f"{number}.wav").write_bytes(speech.file_of(speech.tone(0.2, hertz=300 + number)))
        (tmp_path / f"{number}.txt").write_text(said)
    with raises(DataError, "nothing_to_train_on", "2 × ", "transcript"):
        run(AudioFolderSource(path=str(tmp_path)), AutomaticSpeechRecognitionSpec(), tmp_path, cut=1, shares=(0.0, 0.0))
