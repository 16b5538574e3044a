"""Files to publish as an artifact, and changes to one that is published."""

from pathlib import Path
from typing import Any

from maas_ray import storage
from maas_ray.storage import MANIFEST, Artifact

FILES = {"a.txt": b"alpha", "deep/er/b.bin": bytes(range(256)) * 10, "empty": b""}


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
