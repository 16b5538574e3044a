"""A dry run of `prepare` runs its checks and says what it would do, without a cluster and without writing."""

import sys
from pathlib import Path

import pytest

from maas_ray.data.dataset import dataset_home
from maas_ray.data.dry_run import dry_run
from maas_ray.data.names import POINTER
from maas_ray.data.plan import plan_for
from maas_ray.data.reading import inspect
from maas_ray.data.spec import PrepareSpec
from maas_ray.errors import DataError
from maas_ray.settings import Settings
from tests.support.errors import raises


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n{broken\n')
    return path


def spec_of(path: Path, **changes: object) -> PrepareSpec:
    source = {"format": "jsonl", "path": str(path)}
    return PrepareSpec.parse({"dataset": "notes", "task": {"type": "text-generation"}, "sources": [source]} | changes)


def test_it_says_what_a_first_preparation_would_build(notes: Path, settings: Settings) -> None:
    lines = dry_run(spec_of(notes, clean=[{"step": "pii"}]), settings=settings)

    assert lines[0].startswith("dataset notes: 1 files, ")
    assert lines[1] == f"  sources[0]: jsonl {notes}: 1 files"
    assert lines[2:4] == ["  task: text-generation, columns text", "  clean: pii"]
    assert lines[4].startswith("would build ")
    assert lines[4].endswith(" from all files, 3 rows")


def test_it_names_the_fingerprint_that_prepare_would_commit(notes: Path, settings: Settings) -> None:
    spec = spec_of(notes)
    home = dataset_home(settings, "notes")
    (file,) = spec.sources[0].files()
    plan = plan_for(spec, [[file]], home, lambda files, _: [[inspect(spec.sources[0], file, ("text",))]])

    assert plan.fingerprint[:16] in dry_run(spec, settings=settings)[-1]


def test_it_writes_nothing_and_needs_no_cluster(notes: Path, settings: Settings) -> None:
    before = set(sys.modules)
    dry_run(spec_of(notes), settings=settings)

    assert not (Path(dataset_home(settings, "notes"))).exists()
    assert "ray" not in set(sys.modules) - before


def test_it_says_why_the_current_dataset_cannot_grow(notes: Path, settings: Settings) -> None:
    home = Path(dataset_home(settings, "notes"))
    home.mkdir(parents=True)
    (home / POINTER).write_text("{}")

    (*_, action) = dry_run(spec_of(notes), settings=settings)
    (*_, fresh) = dry_run(spec_of(notes), settings=settings, fresh=True)

    assert "because the current one cannot be used" in action
    assert "because" not in fresh


def test_its_errors_are_those_of_prepare(notes: Path, settings: Settings) -> None:
    with raises(DataError, "path_missing", "sources[0]", "nowhere"):
        dry_run(spec_of(notes.with_name("nowhere")), settings=settings)
    other = [{"format": "jsonl", "path": str(notes), "text": "body"}]
    with raises(DataError, "column_missing", "sources[0]", "'body'"):
        dry_run(spec_of(notes, sources=other), settings=settings)
    alpaca = notes.with_name("alpaca.json")
    alpaca.write_text('[{"instruction": "Add.", "input": "1 1", "output": "2"}]')
    chats = {"type": "text-generation", "column": "messages"}
    with raises(DataError, "column_missing", "'messages'", "`column: instruction`", "input, system, history"):
        dry_run(spec_of(alpaca, task=chats), settings=settings)
    notes.write_text("")
    with raises(DataError, "no_rows"):
        dry_run(spec_of(notes), settings=settings)
