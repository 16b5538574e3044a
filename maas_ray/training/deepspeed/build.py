"""DeepSpeed's compiled extensions: their directory, and a lock that ends with its holder."""

import fcntl
import os
import sys
from pathlib import Path


def load_communication() -> None:
    """Load DeepSpeed's communication between CPU workers in this process; compile it if necessary.

    Torch marks each compilation and each loading with a file. A process that is killed meanwhile leaves the file
    behind, and every later process waits for ever. The kernel releases its own lock when the holder ends, so the
    process that holds that lock may delete the file as stale.
    """
    from deepspeed.ops.op_builder import ShareMemCommBuilder

    builder = ShareMemCommBuilder()
    if not builder.is_compatible():
        return
    directory = build_directory(builder.name)
    with (directory / "maas.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        (directory / "lock").unlink(missing_ok=True)
        builder.load()


def build_directory(name: str) -> Path:
    """The directory in which an extension is compiled. From now on this process compiles there."""
    from torch.utils.cpp_extension import _get_build_directory

    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        # Torch's own directory is shared by a user's environments: two of them would recompile in turns, a minute each.
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    return Path(_get_build_directory(name, verbose=False))


if __name__ == "__main__":
    load_communication()
