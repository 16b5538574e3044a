"""Directories that are kept on this machine because they take time to create: the least recently used are deleted.

A process that uses a directory holds a shared lock on it, which the kernel releases however the process ends. So a
directory in use is never deleted, one of several processes creates it, and nobody sees a partial one.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from maas_ray.settings import Settings

_ABANDONED_SECONDS = 86_400.0  # age of a download of earlier versions, which did not lock it, that has ended for sure
_held_for_ever: "dict[Path, Held]" = {}


class Held:
    """A directory that stays while this object exists.

    Args:
        path: the directory.
        lock: the descriptor of its locked file, which this object closes.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock

    def __del__(self) -> None:
        os.close(self._lock)

    def for_ever(self) -> Path:
        """Hold the directory until this process ends."""
        _held_for_ever.setdefault(self.path, self)
        return self.path


@dataclass(frozen=True)
class DiskCache:
    """Directories by name.

    Args:
        root: their parent.
        max_bytes: most bytes of all of them, if those in use are fewer.
    """

    root: Path
    max_bytes: float

    def get(self, name: str, make: Callable[[Path], object]) -> Held:
        """A directory, created now if it does not exist; then directories are deleted until the rest fits.

        Args:
            name: its name.
            make: creates its contents in an empty directory that is then renamed.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        while (held := self._get(name, make)) is None:
            pass
        os.utime(self._lock(name))  # the time of its last use
        self.sweep()
        return held

    def sweep(self) -> None:
        """Delete what killed processes left, and the least recently used directories until the rest fits."""
        for path in self.root.glob(".*.partial"):
            with self._alone(path.name[1 : -len(".partial")]) as alone:
                if alone:
                    shutil.rmtree(path, ignore_errors=True)
        for path in self.root.glob(".partial-*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
        sizes = {path: _size(path) for path in self.root.iterdir() if path.is_dir() and path.name[0] != "."}
        excess = sum(sizes.values()) - self.max_bytes
        for path in sorted(sizes, key=self._last_use):
            if excess <= 0:
                return
            with self._alone(path.name) as alone:
                if alone and path.is_dir():  # another process sweeps too
                    gone = path.with_name(f".{path.name}.partial")
                    shutil.rmtree(gone, ignore_errors=True)
                    path.rename(gone)  # never half a directory under its name
                    shutil.rmtree(gone, ignore_errors=True)
            if not path.is_dir():
                excess -= sizes[path]

    def _get(self, name: str, make: Callable[[Path], object]) -> Held | None:
        """The directory, held. None: another process deleted it in between."""
        target = self.root / name
        lock = os.open(self._lock(name), os.O_RDWR | os.O_CREAT, 0o644)
        held = Held(target, lock)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not target.is_dir():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir() and self._is_current(name, lock):
                partial = target.with_name(f".{name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                make(partial)
                partial.rename(target)
            fcntl.flock(lock, fcntl.LOCK_SH)
        return held if target.is_dir() and self._is_current(name, lock) else None

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[bool]:
        """Lock a directory that nobody uses. False: somebody does. The lock's file goes with the directory."""
        path = self._lock(name)
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if not self._is_current(name, lock.fileno()):
                yield False
                return
            yield True
            if not (self.root / name).is_dir():
                path.unlink()

    def _is_current(self, name: str, lock: int) -> bool:
        """True if the lock's file is still the one that others would open."""
        with contextlib.suppress(FileNotFoundError):
            return os.fstat(lock).st_ino == self._lock(name).stat().st_ino
        return False

    def _lock(self, name: str) -> Path:
        return self.root / f".{name}.lock"

    def _last_use(self, path: Path) -> float:
        for file in (self._lock(path.name), path):  # earlier versions did not lock bundles
            with contextlib.suppress(FileNotFoundError):
                return file.stat().st_mtime
        return 0.0


def node_cache(root: Path) -> DiskCache:
    """A cache of this machine, with the limit that the settings name."""
    return DiskCache(root, Settings.from_environment(strict=False).cache_gb * 1e9)


def _size(directory: Path) -> int:
    size = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(os.path.join(parent, name)).st_size
    return size
