"""Artifacts: directories at any URI that exist whole or not at all.

The files are put first, each atomically. `manifest.json`, which names every file with size and sha256, is put
last, and that is the commit: a reader opens an artifact through its manifest, so it never sees one that is half
written. A committed artifact is immutable. Two writers never meet, because a directory (or the names inside it)
is derived from what it holds.

The meaning of an artifact is not known here; it stands under `meta` in the manifest.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from maas_ray.errors import ConflictError, CorruptError, NotFoundError, StorageError
from maas_ray.spec import digest_of
from maas_ray.storage import uris
from maas_ray.storage.retry import retry_with_backoff
from maas_ray.storage.uris import join

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact: path inside it (POSIX), size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        uris.check_relative(self.path)


@dataclass(frozen=True)
class Artifact:
    """A committed artifact. `meta` belongs to its kind; `digest` identifies all its bytes."""

    uri: str
    kind: str
    files: tuple[FileEntry, ...]
    meta: dict[str, Any] = field(repr=False)

    @property
    def digest(self) -> str:
        """Sha256 over kind, meta and the digests of all files."""
        return artifact_digest(self.kind, self.files, self.meta)

    def entry(self, path: str) -> FileEntry:
        """The manifest's entry for a file.

        Raises:
            NotFoundError: the artifact has no such file.
        """
        for entry in self.files:
            if entry.path == path:
                return entry
        raise NotFoundError(
            f"{self.uri} has no file {path!r}. Its files: {[e.path for e in self.files]}.", code="file_not_in_artifact"
        )

    def read(self, path: str) -> bytes:
        """A file's bytes, verified."""
        entry = self.entry(path)
        data = uris.read_bytes(join(self.uri, path))
        _check(entry, len(data), hashlib.sha256(data).hexdigest(), self.uri)
        return data

    def fetch(self, directory: Path, paths: list[str] | None = None) -> Path:
        """Download all files (or those named) into a local directory, verifying each on the way."""
        return fetch(self.uri, [entry for entry in self.files if paths is None or entry.path in paths], directory)

    def local(self) -> Path | None:
        """The directory itself when it lies on a local filesystem, else None. Not verified."""
        return uris.local_path(self.uri)

    def verify(self) -> None:
        """Read every file and compare with the manifest.

        Raises:
            CorruptError: the first file that is missing or differs.
        """
        verify(self.uri, self.files)


def file_entry(local: Path, path: str) -> FileEntry:
    """The manifest entry of a local file."""
    digest = hashlib.sha256()
    with local.open("rb") as source:
        while chunk := source.read(uris.CHUNK):
            digest.update(chunk)
    return FileEntry(path, local.stat().st_size, digest.hexdigest())


def artifact_digest(kind: str, files: tuple[FileEntry, ...], meta: dict[str, Any]) -> str:
    """The identity of an artifact: sha256 over its kind, its meta and its files' digests."""
    listing = sorted([entry.path, entry.size, entry.sha256] for entry in files)
    return digest_of({"kind": kind, "files": listing, "meta": meta})


def publish(
    directory: Path,
    parent: str,
    kind: str,
    meta: dict[str, Any],
    retry_seconds: float = 0.0,
    say: Callable[[str], None] = lambda _: None,
) -> Artifact:
    """Publish a local directory as the artifact `parent/<digest>`.

    Publishing is idempotent: the directory is named by its content, so publishing the same content again, after a
    crash or by another writer at the same moment, writes the same bytes to the same place.

    Args:
        directory: the local directory.
        parent: the URI under which the artifact is created.
        kind: the kind of the artifact, such as `dataset`.
        meta: the manifest's `meta`.
        retry_seconds: how long a failing write is retried with backoff.
        say: called with a line for each failure that is retried.

    Returns:
        The committed artifact.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = tuple(file_entry(path, path.relative_to(directory).as_posix()) for path in paths)
    uri = join(parent, artifact_digest(kind, files, meta)[:16])
    if not uris.exists(join(uri, MANIFEST)):
        for path, entry in zip(paths, files, strict=True):
            upload = partial(uris.upload, path, join(uri, entry.path))
            if retry_with_backoff(upload, retry_seconds, say) != (entry.size, entry.sha256):
                raise StorageError(
                    f"{path} changed while it was published; nothing was committed. Publish again.",
                    code="changed_while_published",
                )
    return retry_with_backoff(partial(commit, uri, kind, files, meta), retry_seconds, say)


def commit(
    uri: str, kind: str, files: tuple[FileEntry, ...], meta: dict[str, Any], manifest: str | None = None
) -> Artifact:
    """Commit files that are already at `uri`, by writing the manifest.

    Args:
        uri: the artifact.
        kind: its kind.
        files: its files.
        meta: the manifest's `meta`.
        manifest: URI of the manifest, if other programs could not read a directory that holds it. None: in `uri`.

    Raises:
        ConflictError: another artifact is committed there.
    """
    if any(entry.path == MANIFEST for entry in files):
        raise StorageError(
            f"{uri}: a file of an artifact must not be named {MANIFEST}; rename it.", code="manifest_name_reserved"
        )
    artifact = Artifact(uri, kind, tuple(sorted(files, key=lambda entry: entry.path)), meta)
    manifest = manifest or join(uri, MANIFEST)
    if uris.exists(manifest):
        committed = open_artifact(uri, kind, manifest)
        if committed.digest != artifact.digest:
            raise ConflictError(
                f"{uri} already holds another {kind}, and artifacts are never overwritten. Choose another URI.",
                code="already_committed",
            )
        return committed
    entries = [{"path": e.path, "size": e.size, "sha256": e.sha256} for e in artifact.files]
    uris.write_json(
        manifest,
        {"format": FORMAT, "kind": kind, "digest": artifact.digest, "files": entries, "meta": meta},
    )
    return artifact


def open_artifact(uri: str, kind: str, manifest: str | None = None) -> Artifact:
    """Open a committed artifact, checking that its manifest is whole and each file has its size.

    Raises:
        NotFoundError: nothing is committed there.
        CorruptError: the manifest is damaged, or a file is missing or of another size.
    """
    manifest = manifest or join(uri, MANIFEST)
    try:
        document = uris.read_json(manifest)
    except NotFoundError as error:
        raise NotFoundError(f"no {kind} is committed at {uri}: {manifest} is missing.", code="not_committed") from error
    try:
        if document["format"] != FORMAT:
            raise StorageError(
                f"{uri} has format {document['format']}, but this maas_ray reads format {FORMAT}. Upgrade maas_ray.",
                code="unknown_format",
            )
        files = tuple(FileEntry(e["path"], e["size"], e["sha256"]) for e in document["files"])
        artifact = Artifact(uris.absolute(uri), document["kind"], files, document["meta"])
        promised = document["digest"]
    except KeyError as error:
        raise CorruptError(f"{manifest} lacks {error}.", code="invalid_manifest") from error
    except (AttributeError, TypeError) as error:
        raise CorruptError(f"{manifest} is not a manifest: {error}.", code="invalid_manifest") from error
    if artifact.digest != promised:
        raise CorruptError(f"{manifest} was changed after it was written: its digest differs.", code="manifest_changed")
    if artifact.kind != kind:
        raise NotFoundError(f"{uri} holds a {artifact.kind}, not a {kind}.", code="wrong_kind")
    check_sizes(artifact.uri, artifact.files)
    return artifact


def check_sizes(uri: str, entries: Iterable[FileEntry]) -> None:
    """Check that files exist, each with its size, without reading them.

    Raises:
        CorruptError: the first file that is missing or has another size.
    """
    fs, root = uris.filesystem(uri)
    with uris.translated(uri):
        fs.invalidate_cache()
        sizes = {name: info["size"] for name, info in fs.find(root, detail=True).items()}
    for entry in entries:
        size = sizes.get(f"{root.rstrip('/')}/{entry.path}")
        if size is None:
            raise CorruptError(f"{uri}: {entry.path} is missing. Restore it from a copy.", code="file_missing")
        if size != entry.size:
            raise CorruptError(
                f"{uri}: {entry.path} has {size} bytes; its manifest says {entry.size}. Restore it from a copy.",
                code="size_differs",
            )


def verify(uri: str, entries: Iterable[FileEntry]) -> None:
    """Read files and compare them with their entries.

    Raises:
        CorruptError: the first file that is missing or differs.
    """
    for entry in entries:
        _check(entry, *_digest_at(uri, entry), uri)


def fetch(uri: str, entries: Iterable[FileEntry], directory: Path) -> Path:
    """Download files into a local directory, verifying each on the way. Returns the directory."""
    for entry in entries:
        _fetch(uri, entry, directory / entry.path)
    return directory


def _check(entry: FileEntry, size: int, sha256: str, uri: str) -> None:
    if (size, sha256) != (entry.size, entry.sha256):
        raise CorruptError(
            f"{uri}: {entry.path} is damaged: {size} bytes with sha256 {sha256[:12]}…, its manifest says "
            f"{entry.size} with {entry.sha256[:12]}…. Restore it from a copy, or create the artifact again.",
            code="checksum_differs",
        )


def _digest_at(uri: str, entry: FileEntry) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    for chunk in uris.chunks(join(uri, entry.path)):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def _fetch(uri: str, entry: FileEntry, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as output:
            for chunk in uris.chunks(join(uri, entry.path)):
                digest.update(chunk)
                size += len(chunk)
                output.write(chunk)
        _check(entry, size, digest.hexdigest(), uri)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
