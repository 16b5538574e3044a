"""Preparing on a real cluster: real text and images, however the work is cut, killed or raced."""

import json
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from maas_ray import PrepareSpec, prepare, storage
from maas_ray.data.dataset import PreparedDataset, dataset_home, open_dataset
from maas_ray.data.names import SPLITS
from maas_ray.data.plan import PIPELINE, Plan, list_sources
from maas_ray.data.prepare import prepare as prepare_in
from maas_ray.errors import CorruptError, DataError
from maas_ray.settings import Settings
from tests.support.errors import raises

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def place(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path / "home"))


def text_spec(path: str | Path, **changes: Any) -> PrepareSpec:
    return PrepareSpec.parse(
        {
            "dataset": "text",
            "task": {"type": "text-generation", "tokenizer": {"vocab_size": 400}, "sequence_length": 64},
            "sources": [{"format": "text", "path": str(path), "include": ["*.py"], "exclude": ["__pycache__"]}],
            "splits": {"validation": 0.2, "test": 0.2},
            **changes,
        }
    )


def content(dataset: PreparedDataset) -> dict[str, dict[str, np.ndarray]]:
    """Every stored value, `position` among them, in order."""
    found = {}
    for split in SPLITS:
        batches = list(dataset.read(dataset.row_groups(split)))
        found[split] = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        shards = [pq.read_table(f"{dataset.uri}/{shard.path}") for shard in dataset.split(split).shards]
        found[split]["position"] = np.concatenate([shard["position"].to_numpy() for shard in shards])
    return found


def assert_same(one: dict[str, dict[str, np.ndarray]], other: dict[str, dict[str, np.ndarray]]) -> None:
    for split in SPLITS:
        for name, values in one[split].items():
            assert np.array_equal(values, other[split][name]), (split, name)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """The standard library's `email` and `json` packages, with a duplicate, an empty file and a broken one."""
    root = tmp_path / "library"
    for package in ("email", "json"):
        shutil.copytree(f"{sysconfig.get_path('stdlib')}/{package}", root / package)
    shutil.copy(root / "json/decoder.py", root / "copy.py")
    (root / "blank.py").write_text("\n \n")
    (root / "latin.py").write_bytes("# für\n".encode("latin-1"))
    return root


def test_text_is_prepared_once_and_reused(library: Path, place: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    spec = text_spec(library)
    dataset = prepare(spec, settings=place)
    said = capsys.readouterr().out
    files = sum(path.suffix == ".py" for path in library.rglob("*"))
    counts = dataset.meta.counts
    assert counts.read == files
    # `json/__init__.py` and others of the library may be empty too.
    assert counts.dropped == {"empty": sum(not path.read_text("latin-1").strip() for path in library.rglob("*.py"))}
    assert (counts.duplicates, counts.quarantined) == (1, 1)
    assert counts.adds_up()
    for line in ("read", "dropped", "duplicates", "quarantined", dataset.fingerprint[:16], "not UTF-8: byte 0xfc at 3"):
        assert line in said
    assert "Traceback" not in said
    assert "WARNING" not in said

    dataset.artifact.verify()
    found = content(dataset)
    task = dataset.task
    end = task.end_of_text_id  # type: ignore[attr-defined]
    texts = {path.read_text(encoding="utf-8", errors="replace") for path in library.rglob("*.py")}
    for split in SPLITS:
        columns = found[split]
        assert np.array_equal(columns["index"], np.arange(dataset.split(split).rows))
        assert not np.array_equal(columns["position"], columns["index"])
        tokens = columns["input_ids"][np.argsort(columns["position"])].reshape(-1)
        assert len(tokens) == counts.packed_units[split]
        *whole, _ = np.split(tokens, np.flatnonzero(tokens == end) + 1)
        assert len(whole) >= counts.kept[split] - 1 - counts.packed_dropped[split]
        for document in whole:
            assert task.tokenizer.decode(document[:-1].tolist()) in texts  # type: ignore[attr-defined]
    (quarantine,) = [entry.path for entry in dataset.artifact.files if entry.path.startswith("quarantine/")]
    assert [row["path"] for row in pq.read_table(f"{dataset.uri}/{quarantine}").to_pylist()] == [f"{library}/latin.py"]

    # The second time nothing is done, wherever the files lie now; and what a killed attempt left goes.
    moved = library.rename(library.with_name("moved"))
    (Path(dataset.uri) / "train/part-00000-deadbeef.parquet").write_bytes(b"left over")
    again = prepare(text_spec(moved), settings=place)
    assert again.uri == dataset.uri
    assert f"dataset text: nothing changed, reusing {dataset.fingerprint[:16]}" in capsys.readouterr().out
    assert not (Path(dataset.uri) / "train/part-00000-deadbeef.parquet").exists()
    again.artifact.verify()

    # A damaged dataset is not used, and not overwritten either.
    shard = Path(dataset.uri) / dataset.split("train").shards[0].path
    shard.rename(shard.with_suffix(".away"))
    with raises(CorruptError, "file_missing", f"remove {dataset.uri}."):
        prepare(text_spec(moved), settings=place)
    shard.with_suffix(".away").rename(shard)

    # Another word in one file is another dataset; the old one stays.
    with (moved / "json/decoder.py").open("a") as file:
        file.write("# more\n")
    other = prepare(text_spec(moved), settings=place)
    assert other.fingerprint != dataset.fingerprint
    assert open_dataset(place, "text").uri == other.uri
    assert open_dataset(place, f"text/{dataset.fingerprint}").uri == dataset.uri


def test_the_result_depends_on_nothing_but_spec_and_input(
    library: Path, place: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = prepare(text_spec(library), settings=place)
    expected = content(one)
    # The very same input, from scratch, in one block.
    two = prepare_in(text_spec(library), settings=Settings(home=str(tmp_path / "other")), parallelism=1)
    assert (two.fingerprint, two.uri) != (one.fingerprint, one.uri)
    assert two.fingerprint == one.fingerprint
    assert_same(expected, content(two))
    # Other files' names, other order, other blocks, the sort for large data.
    from maas_ray.data.pipeline import blocks

    renamed = tmp_path / "renamed"
    for number, path in enumerate(sorted(library.rglob("*.py"), reverse=True)):
        target = renamed / f"{number:03d}.py"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "SMALL_BYTES", 0)
        three = prepare_in(text_spec(renamed), settings=place, parallelism=7)
    assert three.fingerprint != one.fingerprint  # a file's place below its source may mean something: a label
    assert_same(expected, content(three))
    # Another seed: the same rows, another order.
    four = content(prepare(text_spec(library, seed=1), settings=place))
    for split in SPLITS:
        assert not np.array_equal(four[split]["position"], expected[split]["position"])
        for columns in (four[split], expected[split]):
            columns["ordered"] = columns["input_ids"][np.argsort(columns["position"])]
        assert np.array_equal(four[split]["ordered"], expected[split]["ordered"])


def test_images_in_folders_are_prepared(place: Settings, tmp_path: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = tmp_path / f"digits/{label}/{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(path)
    (tmp_path / "digits/3/broken.png").write_bytes(b"\x89PNG no more")
    spec = PrepareSpec.parse(
        {
            "dataset": "digits",
            "task": {"type": "image-classification"},
            "sources": [{"format": "image-folder", "path": str(tmp_path / "digits")}],
            "splits": {"validation": 0.1, "test": 0.1},
        }
    )
    dataset = prepare(spec, settings=place)
    counts = dataset.meta.counts
    assert counts.read == 1798
    assert counts.quarantined == 1
    assert counts.adds_up()
    assert counts.kept["test"] == pytest.approx(180, abs=50)
    assert dataset.columns["pixel_values"].shape == (1, 8, 8)
    found = content(dataset)
    pixels = np.concatenate([found[split]["pixel_values"] for split in SPLITS])
    labels = np.concatenate([found[split]["label"] for split in SPLITS])
    images = (digits.images * 255 / 16).astype(np.uint8)
    expected = {(image.tobytes(), int(label)) for image, label in zip(images, digits.target, strict=True)}
    assert {(image.tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True)} == expected


def test_jsonl_and_parquet_are_prepared_together(place: Settings, tmp_path: Path) -> None:
    import pyarrow as pa

    rng = random.Random(0)
    bodies = [" ".join(rng.choices(["alpha", "beta", "gamma", "delta"], k=30)) for _ in range(300)]
    lines = [json.dumps({"body": body}) for body in bodies[:200]]
    lines[100] = lines[100][:10]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"text": bodies[150:]}), tmp_path / "b.parquet", row_group_size=20)
    spec = text_spec(
        tmp_path,
        sources=[
            {"format": "jsonl", "path": str(tmp_path / "a.jsonl"), "text": "body"},
            {"format": "parquet", "path": str(tmp_path / "*.parquet")},
        ],
    )
    counts = prepare(spec, settings=place).meta.counts
    assert (counts.read, counts.duplicates, counts.quarantined) == (350, 50, 1)
    assert sum(counts.kept.values()) == 299


def test_missing_columns_and_empty_input_stop_the_run(place: Settings, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(10):
        (tmp_path / f"in/{number}.py").write_bytes(b"x = 1 # \xe9" if number < 4 else f"y = {number}".encode())
    error = f"\n  4 × not UTF-8: byte 0xe9 at 8 ({tmp_path}/in/0.py)\n"
    with raises(DataError, "too_many_quarantined", "4 of 10 rows", "max_quarantined (0.2)", error, "`exclude`"):
        prepare(text_spec(tmp_path / "in"), settings=place)
    (tmp_path / "rows.jsonl").write_text('{"title": 1}\n')
    source = {"format": "jsonl", "path": str(tmp_path / "rows.jsonl")}
    with raises(DataError, "column_missing", "rows.jsonl", "'text'", "`text`", "title"):
        prepare(text_spec(tmp_path, sources=[source]), settings=place)
    (tmp_path / "rows.jsonl").write_text('{"text": " "}\n')
    with raises(DataError, "nothing_to_train_on"):
        prepare(text_spec(tmp_path, sources=[source]), settings=place)
    assert not storage.list_directory(dataset_home(place, "text"))


def test_an_empty_split_is_reported(place: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.py").write_text("x = 1\n" * 200)
    dataset = prepare(text_spec(tmp_path, splits={"validation": 0.001, "test": 0}), settings=place)
    said = capsys.readouterr().out
    assert "EMPTY: 0.001 of this input is too little" in said
    assert said.count("EMPTY") == 1
    assert dataset.meta.splits["validation"].rows == 0


def test_one_of_two_concurrent_attempts_is_committed(library: Path, place: Settings) -> None:
    from maas_ray.data.commit import commit
    from maas_ray.data.pipeline import blocks
    from maas_ray.data.pipeline.build import build
    from maas_ray.data.pipeline.input import inspect_input

    spec = text_spec(library)
    files = list_sources(spec)
    uri = str(Path(place.storage) / "both")
    with blocks.quiet(1):
        inspected = inspect_input(spec, files, None)
        built = [build(spec, inspected, uri, attempt, None) for attempt in ("first", "second")]
    plan = Plan(uri, "f" * 64, "", {"pipeline": PIPELINE}, inspected)
    one, two = (commit(spec, plan, some, attempt) for some, attempt in zip(built, ("first", "second"), strict=True))
    assert one.artifact == two.artifact
    two.artifact.verify()
    assert not [path for path in Path(uri).rglob("*") if "second" in path.name]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("stage", ["removing duplicates", "shuffling and writing"])
def test_a_killed_driver_commits_nothing(library: Path, place: Settings, stage: str) -> None:
    spec = text_spec(library)
    driver = (
        "import sys; from maas_ray import PrepareSpec, Settings, prepare\n"
        "prepare(PrepareSpec.from_text(sys.argv[1], source='test'), settings=Settings(home=sys.argv[2]))"
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-c", driver, json.dumps(spec.document()), place.home],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        said = next((line for line in process.stdout if stage in line), "")
        process.send_signal(signal.SIGKILL)
    assert stage in said
    home = Path(dataset_home(place, "text"))
    assert not list(home.glob("*/manifest.json"))
    assert not (home / "current.json").exists()
    dataset = prepare(spec, settings=place)
    dataset.artifact.verify()
    assert open_dataset(place, "text").uri == dataset.uri
