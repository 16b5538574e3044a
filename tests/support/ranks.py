"""A program in several processes that DeepSpeed joins to a group, without Ray."""

import os
import subprocess
import sys
from pathlib import Path


def run(program: str, directory: Path, *, world: int = 2) -> None:
    """Run a program on all ranks; an AssertionError with its output if one of them fails.

    Args:
        program: Python source. Its arguments are the directory and the rank.
        directory: where the program may write.
        world: number of processes.
    """
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "WORLD_SIZE": f"{world}", "LOCAL_SIZE": f"{world}"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, str(directory), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"},
        )
        for rank in range(world)
    ]
    try:
        for worker in workers:
            said, _ = worker.communicate(timeout=240)
            assert worker.returncode == 0, said[-3000:]
    finally:
        for worker in workers:
            worker.kill()  # a rank that waits for one that has failed
            worker.wait()
