"""An artifact exists whole or not at all, whoever dies or writes beside it."""

import multiprocessing
import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray import storage
from maas_ray.errors import ConflictError, NotFoundError, StorageError
from maas_ray.storage import MANIFEST, Artifact
from tests.support.artifacts import FILES, make
from tests.support.errors import raises

# --- publishing and reading ------------------------------------------------------------------------


def test_what_is_published_is_read_back(home: str, directory: Path, tmp_path: Path) -> None:
    published = storage.publish(directory, home, "bundle", {"name": "x"})

    opened = storage.open_artifact(published.uri, "bundle")
    copy = opened.fetch(tmp_path / "copy")

    assert opened == published
    assert opened.digest == published.digest
    assert {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == FILES
    assert opened.read("deep/er/b.bin") == FILES["deep/er/b.bin"]
    opened.verify()


def test_the_same_content_is_the_same_artifact(home: str, directory: Path) -> None:
    first = storage.publish(directory, home, "bundle", {"name": "x"})
    second = storage.publish(directory, home, "bundle", {"name": "x"})

    assert second == first
    assert storage.list_directory(home) == [first.uri.rpartition("/")[2]]


@pytest.mark.parametrize(
    ("kind", "meta", "extra"),
    [("dataset", {"name": "x"}, {}), ("bundle", {"name": "y"}, {}), ("bundle", {"name": "x"}, {"c": b""})],
)
def test_any_difference_is_another_artifact(
    home: str, directory: Path, kind: str, meta: dict[str, Any], extra: dict[str, bytes]
) -> None:
    first = storage.publish(directory, home, "bundle", {"name": "x"})

    make(directory, extra)
    second = storage.publish(directory, home, kind, meta)

    assert second.digest != first.digest
    assert second.uri != first.uri
    first.verify()


def test_a_committed_artifact_is_immutable(home: str, directory: Path) -> None:
    artifact = storage.publish(directory, home, "bundle", {})

    with raises(ConflictError, "already_committed", artifact.uri):
        storage.commit(artifact.uri, "bundle", artifact.files, {"other": 1})
    assert storage.open_artifact(artifact.uri, "bundle") == artifact


def test_an_artifact_of_another_kind_is_not_found(home: str, directory: Path) -> None:
    artifact = storage.publish(directory, home, "bundle", {})

    with raises(NotFoundError, "wrong_kind", artifact.uri, "bundle", "dataset"):
        storage.open_artifact(artifact.uri, "dataset")


def test_the_manifests_own_name_is_refused(home: str, directory: Path) -> None:
    (directory / MANIFEST).write_text("{}")

    with raises(StorageError, "manifest_name_reserved", MANIFEST):
        storage.publish(directory, home, "bundle", {})


@given(st.dictionaries(st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,2}\.x", fullmatch=True), st.binary(max_size=64)))
def test_any_tree_of_files_comes_back(files: dict[str, bytes]) -> None:
    # Hypothesis makes many examples of one test, so directories are made here.
    home = f"memory://{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    for path, data in files.items():
        fs.pipe_file(f"{home}/tree/{path}", data)
    entries = tuple(storage.FileEntry(path, len(data), _sha256(data)) for path, data in files.items())

    artifact = storage.open_artifact(storage.commit(f"{home}/tree", "any", entries, {}).uri, "any")

    assert {entry.path: artifact.read(entry.path) for entry in artifact.files} == files


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


# --- interruption and company ----------------------------------------------------------------------


def _publish_and_die(directory: str, home: str, fatal: int) -> None:
    """Publish, but end the process, as `kill -9` would, when it puts its `fatal`-th file for good."""
    replace, count = os.replace, 0

    def dying_replace(source: str, target: str) -> None:
        nonlocal count
        if count == fatal:
            os._exit(9)
        count += 1
        replace(source, target)

    os.replace = dying_replace  # type: ignore[assignment]
    storage.publish(Path(directory), home, "bundle", {})


@pytest.mark.parametrize("fatal", range(len(FILES) + 1))
def test_killed_at_any_file_nothing_is_visible_and_a_second_try_finishes(
    tmp_path: Path, directory: Path, fatal: int
) -> None:
    home = str(tmp_path / "store")
    process = multiprocessing.get_context("spawn").Process(target=_publish_and_die, args=(str(directory), home, fatal))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    [name] = storage.list_directory(home)

    with raises(NotFoundError, "not_committed", name):
        storage.open_artifact(f"{home}/{name}", "bundle")

    artifact = storage.publish(directory, home, "bundle", {})
    assert artifact.uri == f"{home}/{name}"
    storage.open_artifact(artifact.uri, "bundle").verify()


def test_interrupted_on_an_object_store_nothing_is_visible(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = f"memory://{uuid.uuid4().hex}"
    uploads: list[str] = []
    upload = storage.upload

    def interrupted(local: Path, uri: str) -> tuple[int, str]:
        if uploads:
            raise KeyboardInterrupt
        uploads.append(uri)
        return upload(local, uri)

    monkeypatch.setattr(storage.uris, "upload", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.publish(directory, home, "bundle", {})

    with pytest.raises(NotFoundError):
        storage.open_artifact(uploads[0].rpartition("/")[0], "bundle")


def test_a_source_that_changes_while_it_is_published_is_not_committed(
    home: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = storage.upload

    def late_change(local: Path, uri: str) -> tuple[int, str]:
        (directory / "a.txt").write_bytes(b"ALPHA")
        return upload(local, uri)

    monkeypatch.setattr(storage.uris, "upload", late_change)
    with raises(StorageError, "changed_while_published", "a.txt"):
        storage.publish(directory, home, "bundle", {})
    [name] = storage.list_directory(home)
    assert not storage.exists(f"{home}/{name}/{MANIFEST}")


def test_many_may_publish_the_same_at_once(home: str, directory: Path) -> None:
    barrier = threading.Barrier(8)

    def publish(_: int) -> Artifact:
        barrier.wait()
        return storage.publish(directory, home, "bundle", {"name": "x"})

    with ThreadPoolExecutor(8) as pool:
        artifacts = list(pool.map(publish, range(8)))

    assert len({artifact.uri for artifact in artifacts}) == 1
    storage.open_artifact(artifacts[0].uri, "bundle").verify()


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "pointer.json")
    contents = [bytes([value]) * 300_000 for value in range(4)]
    storage.write_bytes(uri, contents[0])
    done = threading.Event()

    def write() -> None:
        for _ in range(10):
            for content in contents:
                storage.write_bytes(uri, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(storage.read_bytes(uri))
    writer.join()

    assert seen <= set(contents)
    assert os.listdir(tmp_path) == ["pointer.json"]
