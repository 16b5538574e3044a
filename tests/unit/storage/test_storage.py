"""An artifact exists whole or not at all, whoever dies or writes beside it."""

import json
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
from maas_ray.errors import ConflictError, CorruptError, NotFoundError, StorageError
from maas_ray.spec import digest_of
from maas_ray.storage import MANIFEST, Artifact, FileEntry
from tests.support.errors import raises
from tests.support.faulty import FINE, FULL, ONE_IN_FIVE, UNREACHABLE, faulty

FILES = {"a.txt": b"alpha", "deep/er/b.bin": bytes(range(256)) * 10, "empty": b""}


@pytest.fixture(params=["local", "memory"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URI under which nothing lies yet."""
    return str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}/store"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make(tmp_path / "source", FILES)


def make(directory: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return directory


def put(artifact: Artifact, path: str, data: bytes) -> None:
    """Write behind the platform's back."""
    fs, target = storage.filesystem(storage.join(artifact.uri, path))
    fs.pipe_file(target, data)


def edit_manifest(artifact: Artifact, edit: Any) -> None:
    document = storage.read_json(storage.join(artifact.uri, MANIFEST))
    edit(document)
    storage.write_json(storage.join(artifact.uri, MANIFEST), document)


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


# --- damage ----------------------------------------------------------------------------------------


def test_a_flipped_byte_is_found_on_every_way_of_reading(home: str, directory: Path, tmp_path: Path) -> None:
    artifact = storage.publish(directory, home, "bundle", {})
    data = bytearray(FILES["deep/er/b.bin"])
    data[1000] ^= 1
    put(artifact, "deep/er/b.bin", bytes(data))
    opened = storage.open_artifact(artifact.uri, "bundle")

    for read in (opened.verify, lambda: opened.read("deep/er/b.bin"), lambda: opened.fetch(tmp_path / "copy")):
        with raises(CorruptError, "checksum_differs", "deep/er/b.bin"):
            read()
    assert not (tmp_path / "copy/deep/er/b.bin").exists()
    assert not list((tmp_path / "copy").rglob("*.partial"))
    assert opened.read("a.txt") == b"alpha"


@pytest.mark.parametrize("data", [b"alph", b"alphaa", b""])
def test_a_file_of_another_size_is_found_when_opening(home: str, directory: Path, data: bytes) -> None:
    artifact = storage.publish(directory, home, "bundle", {})
    put(artifact, "a.txt", data)

    with raises(CorruptError, "size_differs", "a.txt", f"{len(data)} bytes", "manifest says 5"):
        storage.open_artifact(artifact.uri, "bundle")


def test_a_missing_file_is_found_when_opening(home: str, directory: Path) -> None:
    artifact = storage.publish(directory, home, "bundle", {})
    storage.delete(storage.join(artifact.uri, "empty"))

    with raises(CorruptError, "file_missing", "empty"):
        storage.open_artifact(artifact.uri, "bundle")


@pytest.mark.parametrize("keep", [0, 1, 50, -2])
def test_a_truncated_manifest_is_found(home: str, directory: Path, keep: int) -> None:
    artifact = storage.publish(directory, home, "bundle", {})
    put(artifact, MANIFEST, storage.read_bytes(storage.join(artifact.uri, MANIFEST))[:keep])

    with raises(CorruptError, "invalid_json", MANIFEST):
        storage.open_artifact(artifact.uri, "bundle")


def _add_file(document: dict[str, Any]) -> None:
    document["files"].append({"path": "a2.txt", "size": 5, "sha256": "0" * 64})


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document["meta"].update(name="evil"),
        lambda document: document["files"][0].update(sha256="0" * 64),
        lambda document: document["files"][0].update(size=6),
        lambda document: document["files"].pop(),
        lambda document: document.update(digest="0" * 64),
        lambda document: document.update(kind="dataset"),
        lambda document: document.pop("meta"),
        lambda document: document.update(files=None),
        lambda document: document["files"][0].update(path=5),
        _add_file,
    ],
)
def test_a_tampered_manifest_is_found(home: str, directory: Path, edit: Any) -> None:
    artifact = storage.publish(directory, home, "bundle", {"name": "x"})
    edit_manifest(artifact, edit)

    with pytest.raises(CorruptError):
        storage.open_artifact(artifact.uri, "bundle")


@pytest.mark.parametrize("document", [[], "text", 5, None, {}, {"format": 2}, {"format": 1}], ids=json.dumps)
def test_a_document_that_is_no_manifest_is_refused(home: str, document: Any) -> None:
    storage.write_json(storage.join(home, MANIFEST), document)

    with pytest.raises(StorageError):
        storage.open_artifact(home, "bundle")


PATHS_OUT = ["../x", "a/../../x", "/etc/passwd", "a//b", ".", "..", "a/.", "", "a\\b", "a/", "a\0b"]


@pytest.mark.parametrize("path", PATHS_OUT)
def test_no_path_leads_out_of_an_artifact(home: str, directory: Path, path: str) -> None:
    artifact = storage.publish(directory, home, "bundle", {})

    def climb(document: dict[str, Any]) -> None:
        document["files"][0]["path"] = path
        listing = sorted([entry["path"], entry["size"], entry["sha256"]] for entry in document["files"])
        document["digest"] = digest_of({"kind": "bundle", "files": listing, "meta": {}})

    edit_manifest(artifact, climb)

    with raises(StorageError, "path_not_relative", repr(path)):
        storage.open_artifact(artifact.uri, "bundle")
    with raises(StorageError, "path_not_relative"):
        storage.join(home, path)
    with raises(StorageError, "path_not_relative"):
        FileEntry(path, 0, "")


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


# --- single files and URIs -------------------------------------------------------------------------


def test_what_a_filesystem_raises_becomes_the_platforms_error(home: str, tmp_path: Path) -> None:
    with raises(NotFoundError, "not_found", f"{home}/none"):
        storage.read_bytes(f"{home}/none")
    with raises(StorageError, "unknown_scheme", "nosuch://x"):
        storage.exists("nosuch://x")
    (tmp_path / "file").write_text("x")
    with raises(StorageError, "storage_failed", tmp_path / "file" / "below"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"")
    storage.write_bytes(f"{home}/bad.json", b"{")
    with raises(CorruptError, "invalid_json", f"{home}/bad.json"):
        storage.read_json(f"{home}/bad.json")


def test_listing_and_deleting(home: str) -> None:
    assert storage.list_directory(home) == []
    storage.write_bytes(f"{home}/b/x", b"1")
    storage.write_bytes(f"{home}/a", b"2")

    assert storage.list_directory(home) == ["a", "b"]
    storage.delete(f"{home}/b")
    storage.delete(f"{home}/b")
    assert storage.list_directory(home) == ["a"]


@pytest.mark.parametrize(
    ("uri", "joined"),
    [
        ("s3://bucket/maas/", "s3://bucket/maas/a/b"),
        ("memory://", "memory:///a/b"),
        ("file:///", "file:///a/b"),
        ("/", "/a/b"),
        ("/srv//", "/srv/a/b"),
    ],
)
def test_joining_keeps_the_scheme(uri: str, joined: str) -> None:
    assert storage.join(uri, "a", "b") == joined


def test_local_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert storage.join("x", "a") == f"{tmp_path}/x/a"
    assert storage.join("~/x", "a") == f"{tmp_path}/x/a"
    assert storage.is_local("x")
    assert not storage.is_local("memory://x")


def test_storage_that_cannot_be_reached_is_not_taken_for_empty(tmp_path: Path):
    told, home = tmp_path / "told", f"faulty://{tmp_path}/store"
    told.write_text(FINE)
    faulty(told)()
    assert storage.list_directory(home) == []
    storage.write_bytes(f"{home}/a", b"alpha")
    told.write_text(UNREACHABLE)
    with pytest.raises(StorageError, match="ConnectionLostError: Could not connect to the endpoint"):
        storage.list_directory(home)
    told.write_text(FINE)
    assert storage.list_directory(home) == ["a"]


def test_publishing_tries_again_what_could_not_be_written(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage.retry.time, "sleep", lambda _: None)
    told, said = tmp_path / "told", []
    told.write_text(ONE_IN_FIVE)
    faulty(told)()
    for number in range(5):
        storage.publish(directory, f"faulty://{tmp_path}/store", "bundle", {"number": number}, 60, said.append).verify()
    # Four files each, the manifest among them: the 20 and 4 more.
    assert len(said) == 4
    told.write_text(FULL)
    with pytest.raises(StorageError, match="No space left on device"):
        storage.publish(directory, f"faulty://{tmp_path}/store", "bundle", {})
