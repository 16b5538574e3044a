"""A program in several processes that DeepSpeed joins to a group, without Ray."""

import os
import sys
import warnings
from multiprocessing import connection
from pathlib import Path

from tests.support import forked


def run(program: str, directory: Path, *, world: int = 2) -> None:
    """Run a program on all ranks; an AssertionError with its output if one of them fails.

    Args:
        program: Python source. Its arguments are the directory and the rank.
        directory: where the program may write.
        world: number of processes.
    """
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "WORLD_SIZE": f"{world}", "LOCAL_SIZE": f"{world}"}
    workers = [
        forked.context().Process(
            target=_become,
            args=(program, str(directory), rank, environment | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}),
        )
        for rank in range(world)
    ]
    try:
        for worker in workers:
            worker.start()
        running = {worker.sentinel: (rank, worker) for rank, worker in enumerate(workers)}
        while running:
            ended = connection.wait(running, timeout=240)
            assert ended, f"ranks {[rank for rank, _ in running.values()]} have not ended"
            for rank, worker in [running.pop(sentinel) for sentinel in ended]:  # type: ignore[call-overload]
                worker.join()
                assert worker.exitcode == 0, _log(directory, rank).read_text()[-3000:]
    finally:
        for worker in workers:
            worker.kill()  # a rank that waits for one that has failed
            worker.join()


def _log(directory: Path, rank: int) -> Path:
    return directory / f"rank-{rank}.log"


def _become(program: str, directory: str, rank: int, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with _log(Path(directory), rank).open("w") as log:
        for standard in (1, 2):
            os.dup2(log.fileno(), standard)
    warnings.simplefilter("ignore")
    sys.argv = ["-c", directory, str(rank)]
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
