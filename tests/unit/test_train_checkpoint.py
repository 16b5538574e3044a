"""A checkpoint counts only when every file of every rank is there and whole."""

import json
from pathlib import Path

import pytest

from maas_ray import storage
from maas_ray.errors import CorruptError
from maas_ray.train.checkpoint import Position, check, position_of


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """What two ranks delivered, merged into one directory as Ray Train does."""
    (tmp_path / "state").mkdir()
    for rank in range(2):
        shard = tmp_path / "state" / f"zero_pp_rank_{rank}_optim_states.pt"
        shard.write_bytes(bytes([rank]) * 1000)
        entry = storage.file_entry(shard, f"state/{shard.name}")
        listing = [{"path": entry.path, "size": entry.size, "sha256": entry.sha256}]
        (tmp_path / f"rank-{rank:05d}.json").write_text(json.dumps(listing))
    position = Position(step=7, workers=2, metrics={"validation/loss": 1.5}, deepspeed={"optimizer": {"eps": 1e-08}})
    (tmp_path / "position.json").write_text(json.dumps(position.document()))
    return tmp_path


def test_a_whole_one_says_where_the_run_stood(whole: Path):
    position = check(whole)
    assert (position.step, position.workers, position.metrics) == (7, 2, {"validation/loss": 1.5})
    assert position.deepspeed["optimizer"]["eps"] == 1e-08


def test_a_rank_that_did_not_deliver_is_missed(whole: Path):
    (whole / "rank-00001.json").unlink()
    with pytest.raises(CorruptError, match="the shards of rank 1 are missing"):
        check(whole)


def test_a_shard_that_is_gone_cut_off_or_changed_is_named(whole: Path):
    shard = whole / "state" / "zero_pp_rank_1_optim_states.pt"
    shard.write_bytes(b"\x01" * 999 + b"\x02")
    with pytest.raises(CorruptError, match=r"zero_pp_rank_1_optim_states.pt is damaged"):
        check(whole)
    shard.write_bytes(b"\x01" * 10)
    with pytest.raises(CorruptError, match="is missing or cut off"):
        check(whole)
    shard.unlink()
    with pytest.raises(CorruptError, match="is missing or cut off"):
        check(whole)


def test_a_position_that_is_gone_or_cut_off_is_an_error_of_ours(whole: Path):
    (whole / "position.json").write_text('{"step": 7, "wor')
    with pytest.raises(CorruptError, match=r"no readable position.json"):
        position_of(whole)
    (whole / "position.json").unlink()
    with pytest.raises(CorruptError, match=r"no readable position.json"):
        check(whole)
