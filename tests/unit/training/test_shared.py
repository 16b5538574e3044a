"""Workers share the driver's storage, which is proved in the first seconds, and rank 0's buffers."""

import multiprocessing
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from maas_ray import storage
from maas_ray.errors import TrainingError
from maas_ray.training.checkpoints.shared import probe, prove
from maas_ray.training.collectives import share_buffers

_LONGEST = timedelta(seconds=4)
"""How long a collective may take in these tests."""


def _buffers(rank: int) -> dict[str, Any]:
    import torch

    numbers = torch.arange(6.0).view(2, 3) + rank
    return {
        "mean": numbers,
        "turned": numbers.T,  # not contiguous
        "rounded": numbers.bfloat16(),
        "counted": torch.tensor(1 << 40) + rank,
        "seen": numbers > 2,
        "waves": torch.complex(numbers, -numbers),
        "none": numbers[:0],
    }


def _work(rank: int, uri: str, rendezvous: str, results: Any, slow: str, imported: Any) -> None:
    import torch

    imported.wait(60)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=_LONGEST
    )
    look = storage.exists

    def waits(uri: str) -> bool:
        time.sleep(_LONGEST.total_seconds() + 0.5)
        return look(uri)

    if slow == str(rank):
        storage.exists = waits
    module = torch.nn.Module()
    for name, value in _buffers(rank).items():
        module.register_buffer(name, value)
    try:
        prove(uri, rank)
        share_buffers(module)
        assert all(torch.equal(dict(module.named_buffers())[name], value) for name, value in _buffers(0).items())
        results.put((rank, ""))
    except TrainingError as error:
        results.put((rank, error.code))
    finally:
        torch.distributed.destroy_process_group()


# Other ranks wait for a slow one longer than a collective may take.
@pytest.mark.parametrize(("other", "code", "slow"), [("", "", "1"), ("elsewhere", "storage_not_shared", "")])
def test_every_rank_learns_whether_storage_is_shared(tmp_path: Path, other: str, code: str, slow: str) -> None:
    context = multiprocessing.get_context("spawn")
    results, imported = context.Queue(), context.Barrier(2)
    home = str(tmp_path / "home")
    with probe(home, 0.0, pytest.fail) as uri:
        elsewhere = storage.join(str(tmp_path / other), "home", Path(uri).name)  # the place on another machine
        ranks = [
            context.Process(
                target=_work, args=(rank, (uri, elsewhere)[rank], str(tmp_path / "meet"), results, slow, imported)
            )
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
        found = dict(results.get(timeout=60) for _ in ranks)
        for process in ranks:
            process.join(30)
    assert found == {0: code, 1: code}
    assert storage.list_directory(home) == []
