"""Storage that fails as told: an fsspec filesystem over a local directory, for worker processes too.

Like an object store it shows a file once it is closed, whole. What is to go wrong stands in a file that every process
reads before every operation.
"""

from collections.abc import Callable
from pathlib import Path

ONE_IN_FIVE, FULL, UNREACHABLE, FINE = "one write in five", "full", "unreachable", "fine"


def met(told: Path) -> Path:
    """A file that is there once somebody has found the storage unreachable."""
    return told.with_name("met")


def faulty(told: Path) -> Callable[[], None]:
    """A function, to be sent by value, that registers the protocol `faulty://` in the process that calls it.

    Args:
        told: the file that says what goes wrong: one of the names above.
    """
    path_told, path_met = str(told), str(met(told))
    modes = ONE_IN_FIVE, FULL, UNREACHABLE

    def register() -> None:
        import errno
        import io
        import itertools
        import os
        import uuid
        from pathlib import Path

        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        one_in_five, full, unreachable = modes
        writes = itertools.count(1)
        local = LocalFileSystem()

        class ConnectionLostError(Exception):
            """As botocore's: no OSError."""

        def check(*, writing=False):
            mode = Path(path_told).read_text()
            if mode == unreachable:
                Path(path_met).touch()
                raise ConnectionLostError("Could not connect to the endpoint")
            if writing and mode == full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if writing and mode == one_in_five and next(writes) % 5 == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        class Object(io.BytesIO):
            def __init__(self, path):
                super().__init__()
                self.path = Path(path)

            def close(self):
                if self.closed:
                    return
                content = self.getvalue()
                super().close()
                check(writing=True)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                unfinished = self.path.with_name(f".{uuid.uuid4().hex}")
                unfinished.write_bytes(content)
                unfinished.replace(self.path)

        class Faulty(fsspec.AbstractFileSystem):
            protocol = "faulty"
            cachable = False

            def _open(self, path, mode="rb", **options):
                check()
                return Object(path) if "w" in mode else local.open(path, mode)

            def ls(self, path, detail=True, **options):
                check()
                return local.ls(path, detail=detail)

            def info(self, path, **options):
                check()
                return local.info(path)

            def rm(self, path, recursive=False, maxdepth=None):
                check()
                local.rm(path, recursive=recursive)

        fsspec.register_implementation("faulty", Faulty, clobber=True)

    return register
