"""Single files and URIs, and storage that cannot be reached."""

from pathlib import Path

import pytest

from maas_ray import storage
from maas_ray.errors import CorruptError, NotFoundError, StorageError
from tests.support.errors import raises
from tests.support.faulty import FINE, FULL, ONE_IN_FIVE, UNREACHABLE, faulty


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
