"""What DeepSpeed compiles on the machine it runs on: where it lies, and a lock that does not outlive its holder."""

import fcntl
import os
import sys
from pathlib import Path


def load_communication() -> None:
    """Load DeepSpeed's communication between CPU workers in this process; compiled where it is not yet.

    Torch marks a compilation, and each loading, with a file. A process that is killed meanwhile leaves it behind, and
    every later one waits for ever. The kernel's lock ends with the process that holds it, so whoever has that may
    take such a file for an old one.
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
    """Where a part of that name is compiled, and lies then; from now on, in this process."""
    from torch.utils.cpp_extension import _get_build_directory

    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        # In torch's own place, one for each user, two environments would compile it anew in turns, a minute each.
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    return Path(_get_build_directory(name, verbose=False))


if __name__ == "__main__":
    load_communication()
