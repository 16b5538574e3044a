"""Local directories for large files that outlive nobody: those of processes that were killed are removed by the next.

They lie in the system's temporary directory, which `TMPDIR` chooses.
"""

import fcntl
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OWNER = ".owner"
_OLD_SECONDS = 86400.0


@contextmanager
def scratch(prefix: str, name: str = "") -> Iterator[Path]:
    """A new directory while the block runs.

    The process holds a lock on a file in it, which the kernel releases when the process ends, however it ends.

    Args:
        prefix: the purpose, such as `maas-export-`. Directories with this prefix whose owner has ended are removed.
        name: the rest of its name. Empty: chosen at random.
    """
    home = Path(tempfile.gettempdir())
    _sweep(home, prefix)
    # It gets its name when the lock is held, so that nobody takes it for one of a dead process.
    made = Path(tempfile.mkdtemp(prefix="maas-new-", dir=home))
    directory = made
    with (made / _OWNER).open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            directory = made.rename(home / f"{prefix}{name or uuid.uuid4().hex[:12]}")
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _sweep(home: Path, prefix: str) -> None:
    """Remove directories of processes that have ended, and those without an owner that are a day old."""
    for directory in home.glob(f"{prefix}*"):
        try:
            with (directory / _OWNER).open("r+") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        except FileNotFoundError:
            if directory.is_dir() and time.time() - directory.stat().st_mtime > _OLD_SECONDS:
                shutil.rmtree(directory, ignore_errors=True)
        except OSError:  # it is in use, or another user's
            continue
