"""Local directories for large files are removed by their process, or by the next one if it was killed."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from maas_ray import storage

HOLD = """
import sys
from maas_ray import storage
with storage.scratch("maas-test-") as directory:
    (directory / "copy").write_bytes(b"x" * 1000)
    print(directory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_a_directory_is_removed_when_the_block_ends_or_fails(tmp_path: Path):
    with storage.scratch("maas-test-", "named") as directory:
        assert directory == tmp_path / "maas-test-named"
        (directory / "copy").write_bytes(b"x")
    with pytest.raises(ZeroDivisionError), storage.scratch("maas-test-"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_a_process_that_was_killed_is_removed_by_the_next(tmp_path: Path):
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with storage.scratch("maas-test-"):
            assert (left / "copy").exists(), "it is in use"
        other.kill()
        other.wait(30)
        assert left.exists()
        with storage.scratch("maas-other-"):
            assert left.exists(), "another purpose"
        with storage.scratch("maas-test-"):
            assert not left.exists()


def test_a_directory_without_an_owner_is_removed_after_a_day(tmp_path: Path):
    old, new = tmp_path / "maas-test-old", tmp_path / "maas-test-new"
    for directory, age in ((old, 90_000), (new, 60)):
        directory.mkdir()
        os.utime(directory, (time.time() - age,) * 2)
    with storage.scratch("maas-test-"):
        assert (old.exists(), new.exists()) == (False, True)
