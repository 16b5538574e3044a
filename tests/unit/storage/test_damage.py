"""A damaged artifact is found, and no path leads out of one."""

import json
from pathlib import Path
from typing import Any

import pytest

from maas_ray import storage
from maas_ray.errors import CorruptError, StorageError
from maas_ray.spec import digest_of
from maas_ray.storage import MANIFEST, FileEntry
from tests.support.artifacts import FILES, edit_manifest, put
from tests.support.errors import raises


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
