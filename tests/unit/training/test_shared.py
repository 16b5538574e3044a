"""Workers that do not share the driver's storage are found out in the first seconds."""

import multiprocessing
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from maas_ray import storage
from maas_ray.errors import TrainingError
from maas_ray.training.checkpoints.shared import probe, prove

_LONGEST = timedelta(seconds=2.5)
"""How long a collective may take in these tests."""


def _work(rank: int, uri: str, rendezvous: str, results: Any, slow: str) -> None:
    import torch

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=_LONGEST
    )
    look = storage.exists

    def waits(uri: str) -> bool:
        time.sleep(_LONGEST.total_seconds() + 0.5)
        return look(uri)

    if slow == str(rank):
        storage.exists = waits
    try:
        prove(uri, rank)
        results.put((rank, ""))
    except TrainingError as error:
        results.put((rank, error.code))
    finally:
        torch.distributed.destroy_process_group()


# Other ranks wait for a slow one longer than a collective may take.
@pytest.mark.parametrize(("other", "code", "slow"), [("", "", "1"), ("elsewhere", "storage_not_shared", "")])
def test_every_rank_learns_whether_storage_is_shared(tmp_path: Path, other: str, code: str, slow: str) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    home = str(tmp_path / "home")
    with probe(home, 0.0, pytest.fail) as uri:
        elsewhere = storage.join(str(tmp_path / other), "home", Path(uri).name)  # the place on another machine
        ranks = [
            context.Process(target=_work, args=(rank, (uri, elsewhere)[rank], str(tmp_path / "meet"), results, slow))
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
        found = dict(results.get(timeout=60) for _ in ranks)
        for process in ranks:
            process.join(30)
    assert found == {0: code, 1: code}
    assert storage.list_directory(home) == []
