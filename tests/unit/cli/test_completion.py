"""Names are completed in a shell, and errors of a completion stay silent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maas_ray import storage
from maas_ray.cli import completion
from maas_ray.settings import Settings


def completed(*words: str) -> list[str]:
    """The answers that bash gets for `maas WORDS<tab>`."""
    environment = os.environ | {
        "_MAAS_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["maas", *words]),
        "COMP_CWORD": str(len(words)),
    }
    code = "import sys; sys.argv[0] = 'maas'; from maas_ray.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_shell_completes_commands_and_names(settings: Settings) -> None:
    storage.write_bytes(storage.join(settings.storage, "datasets", "digits", "current.json"), b"{}")
    storage.write_bytes(storage.join(settings.storage, "datasets", "digits-failed", "0123", "work", "x"), b"")

    assert completed("ev") == ["evaluate"]
    assert completed("data", "dig") == ["digits"]
    assert completed("spec", "p") == ["prepare", "predict"]


def test_spec_files_are_yaml_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.yaml", "tree.yml", "notes.txt", ".hidden.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/a.yaml").write_text("")

    assert completion.spec_files("") == ["specs/", "train.yaml", "tree.yml"]
    assert completion.spec_files("tr") == ["train.yaml", "tree.yml"]
    assert completion.spec_files("specs/") == ["specs/a.yaml"]
    assert completion.spec_files("nowhere/") == []


def test_a_completion_never_raises_and_creates_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completion.datasets("") == completion.endpoints("") == []
    assert completion.log_sources("g") == ["gateway"]
    assert not Path(settings.home).exists() or list(Path(settings.home).iterdir()) == []
    monkeypatch.setenv("MAAS_STORGE", "x")

    assert completion.datasets("") == completion.endpoints("") == []
