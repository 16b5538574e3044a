"""What DeepSpeed compiles on the machine it runs on, and a lock that does not outlive its holder."""

import fcntl
from pathlib import Path


def load_communication() -> None:
    """Load DeepSpeed's communication between CPU workers in this process; compiled where it is not yet, once a machine.

    Torch marks a compilation, and each loading, with a file. A process that is killed meanwhile leaves it behind, and
    every later one waits for ever. The kernel's lock ends with the process that holds it, so whoever has that may
    take such a file for an old one.
    """
    from deepspeed.ops.op_builder import ShareMemCommBuilder
    from torch.utils.cpp_extension import _get_build_directory

    builder = ShareMemCommBuilder()
    if not builder.is_compatible():
        return
    directory = Path(_get_build_directory(builder.name, verbose=False))
    with (directory / "maas.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        (directory / "lock").unlink(missing_ok=True)
        builder.load()
