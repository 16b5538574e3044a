"""Sources and datasets in an object store: S3's protocol, as moto's server speaks it on this machine."""

import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image
from s3fs import S3FileSystem

from maas_ray import PrepareSpec, prepare
from maas_ray.cluster import free_ports
from maas_ray.data.dataset import PreparedDataset, open_dataset
from maas_ray.data.names import SPLITS
from maas_ray.data.reading import stamp
from maas_ray.errors import DataError, MaasError
from maas_ray.settings import Settings
from tests.support.errors import raises

pytestmark = pytest.mark.usefixtures("cluster")
PLACE = Settings(storage="s3://lake/storage")


@pytest.fixture(scope="module")
def server(cluster: str) -> Iterator[str]:
    """The endpoint that the environment of all processes names."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    moto = ThreadedMotoServer("127.0.0.1", urlsplit(endpoint).port or 0, verbose=False)
    moto.start()
    try:
        yield endpoint
    finally:
        moto.stop()
        S3FileSystem.clear_instance_cache()


@pytest.fixture
def lake(server: str) -> S3FileSystem:
    """An empty bucket, `lake`, and the requests since."""
    httpx.post(f"{server}/moto-api/reset").raise_for_status()
    S3FileSystem.clear_instance_cache()
    fs = S3FileSystem()
    fs.mkdir("lake")
    return fs


def sentence(number: int) -> str:
    rng = np.random.default_rng(number)
    return f"text {number}: " + " ".join(f"w{word}" for word in rng.integers(0, 300, 30))


def write_lines(fs: S3FileSystem, path: str, numbers: range) -> None:
    fs.pipe_file(path, "".join(json.dumps({"text": sentence(number)}) + "\n" for number in numbers).encode())


def write_table(fs: S3FileSystem, path: str, **columns: Any) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=20)
    fs.pipe_file(path, buffer.getvalue())


def text_spec(**changes: Any) -> PrepareSpec:
    return PrepareSpec.parse(
        {
            "dataset": "text",
            "task": {"type": "text-generation", "tokenizer": {"vocab_size": 300}, "sequence_length": 32},
            "sources": [
                {"format": "jsonl", "path": "s3://lake/lines"},
                {"format": "text", "path": "s3://lake/notes/**/*.md"},
                {"format": "parquet", "path": "s3://lake/table.parquet", "text": "body"},
            ],
            "splits": {"validation": 0.1, "test": 0.1},
            **changes,
        }
    )


def read_to_the_end(dataset: PreparedDataset) -> int:
    return sum(len(next(iter(batch.values()))) for split in SPLITS for batch in dataset.read(dataset.row_groups(split)))


@contextmanager
def requests() -> Iterator[list[str]]:
    """Requests to the server meanwhile, one line each. `caplog` does not see them, because `prepare` silences it."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("werkzeug"), Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_a_dataset_in_a_bucket_is_reused_and_grows(lake: S3FileSystem, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(lake, "lake/lines/a.jsonl", range(40))
    write_lines(lake, "lake/lines/deep/b.jsonl", range(30, 60))  # ten of them once more
    for number in range(60, 70):
        lake.pipe_file(f"lake/notes/{number % 3}/{number}.md", sentence(number).encode())
    lake.pipe_file("lake/notes/left/out.txt", b"of another kind")
    write_table(lake, "lake/table.parquet", body=[sentence(number) for number in range(70, 130)])
    spec = text_spec()
    first = prepare(spec, settings=PLACE)
    counts = first.meta.counts
    assert (counts.read, counts.duplicates, sum(counts.kept.values())) == (140, 10, 130)
    assert first.uri.startswith("s3://lake/storage/")
    first.artifact.verify()
    assert read_to_the_end(first) == sum(first.meta.splits[split].rows for split in SPLITS) > 0
    assert not lake.exists(f"{first.uri}/work")

    capsys.readouterr()
    assert prepare(spec, settings=PLACE).artifact == first.artifact
    assert open_dataset(PLACE, "text").artifact == first.artifact
    write_lines(lake, "lake/lines/new.jsonl", range(125, 150))
    capsys.readouterr()
    with requests() as asked:
        second = prepare(spec, settings=PLACE)
    # All others were asked for their ETags alone. What follows `?` asks for a list.
    read = {line[1] for line in re.finditer(r"GET (/lake/(?!storage/)[^? ]+) HTTP", "\n".join(asked))}
    assert read == {"/lake/lines/new.jsonl"}
    assert f"growing {first.fingerprint[:16]} by 1 new files, 0.0 MB" in capsys.readouterr().out
    assert second.meta.parent == first.fingerprint
    assert second.meta.grown is not None
    assert (second.meta.grown.read, second.meta.grown.duplicates) == (25, 5)
    assert second.meta.counts.adds_up()
    # Each is whole without the other.
    lake.rm(first.uri, recursive=True)
    second.artifact.verify()
    assert read_to_the_end(second) == sum(second.meta.splits[split].rows for split in SPLITS)
    # A file that is another one has another ETag, though it is as long.
    before = stamp("s3://lake/lines/new.jsonl")
    assert stamp("s3://lake/lines/new.jsonl") == before
    write_lines(lake, "lake/lines/new.jsonl", range(225, 250))
    assert stamp("s3://lake/lines/new.jsonl") != before


def test_the_signature_of_a_url_is_stored_nowhere(
    server: str, lake: S3FileSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signed URL is a password for its time. It does not decide the dataset's identity either."""
    lines = [json.dumps({"text": sentence(number)}) for number in range(20)]
    lake.pipe_file("lake/signed.jsonl", "\n".join([*lines, lines[0], "{not json", ""]).encode())

    def signed(signature: str) -> PrepareSpec:
        url = f"{server.replace('://', '://reader:planted-password@')}/lake/signed.jsonl?X-Amz-Signature={signature}"
        return text_spec(sources=[{"format": "jsonl", "path": url}], splits={}, max_quarantined=0.2)

    first = prepare(signed("planted-signature"), settings=PLACE)
    assert (first.meta.counts.read, first.meta.counts.quarantined, first.meta.counts.duplicates) == (22, 1, 1)
    names = lake.find("lake/storage")
    for name in names:
        content = lake.cat_file(name)
        if name.endswith(".parquet"):
            content += repr(pq.read_table(io.BytesIO(content)).to_pylist()).encode()
        assert b"planted" not in content, name
    (source,) = first.meta.spec["sources"]
    assert source["path"].endswith("@" + server.partition("://")[2] + "/lake/signed.jsonl?X-Amz-Signature=***")
    assert prepare(signed("another-signature"), settings=PLACE).artifact == first.artifact
    assert "planted" not in capsys.readouterr().out


def test_a_table_names_images_in_a_bucket(lake: S3FileSystem) -> None:
    paths = []
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        paths.append(f"s3://lake/images/{number}.png")
        lake.pipe_file(paths[-1], buffer.getvalue())
    lake.pipe_file(paths[3], b"no image")
    lake.rm(paths[4])
    write_table(lake, "lake/images.parquet", image=paths, label=[f"k{number % 2}" for number in range(40)])
    document = {
        "dataset": "images",
        "task": {"type": "image-classification"},
        "sources": [{"format": "parquet", "path": "s3://lake/images.parquet"}],
        "splits": {"validation": 0.1, "test": 0.1},
    }
    dataset = prepare(PrepareSpec.parse(document), settings=PLACE)
    assert (dataset.meta.counts.quarantined, sum(dataset.meta.counts.kept.values())) == (2, 38)
    quarantine = [entry.path for entry in dataset.artifact.files if entry.path.startswith("quarantine/")]
    rows = [row for path in quarantine for row in pq.read_table(io.BytesIO(dataset.artifact.read(path))).to_pylist()]
    assert Counter(row["position"] for row in rows) == {3: 1, 4: 1}
    assert any("s3://lake/images/4.png does not exist" in row["error"] for row in rows)


def test_missing_buckets_files_and_permissions_are_errors(server: str, lake: S3FileSystem) -> None:
    source = {"format": "text", "path": "s3://nowhere/notes"}
    with raises(DataError, "path_missing", "s3://nowhere/notes"):
        prepare(text_spec(sources=[source]), settings=PLACE)
    with raises(DataError, "no_files", "s3://lake/none/*.md"):
        prepare(text_spec(sources=[source | {"path": "s3://lake/none/*.md"}]), settings=PLACE)
    # A place for the dataset that is not there.
    lake.pipe_file("lake/notes/a.md", b"a text that will be read")
    spec = text_spec(sources=[source | {"path": "s3://lake/notes"}])
    with pytest.raises(MaasError, match="s3://nowhere"):
        prepare(spec, settings=Settings(storage="s3://nowhere/storage"))
    # Keys that nobody gave out: 403.
    httpx.post(f"{server}/moto-api/reset-auth", content="0").raise_for_status()
    try:
        S3FileSystem.clear_instance_cache()
        with raises(DataError, "permission_denied", "s3://lake/notes"):
            prepare(spec, settings=PLACE)
    finally:
        httpx.post(f"{server}/moto-api/reset-auth", content="inf").raise_for_status()


def test_an_object_store_that_does_not_answer_is_an_error(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()
    try:
        with raises(DataError, "storage_failed", "s3://lake/notes", f"127.0.0.1:{port}"):
            prepare(text_spec(sources=[{"format": "text", "path": "s3://lake/notes"}]), settings=PLACE)
    finally:
        S3FileSystem.clear_instance_cache()
