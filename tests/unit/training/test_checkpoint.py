"""A checkpoint counts only when every file of every rank is there and whole; else the one before it does."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from maas_ray.errors import CorruptError, StorageError
from maas_ray.storage import retry, uris
from maas_ray.training.checkpoints import layout
from maas_ray.training.checkpoints.catalog import best, inspect, newest, prune, put_validation, saved
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.checkpoints.snapshot import Snapshot, copied
from maas_ray.training.validation.early_stopping import judge
from maas_ray.training.validation.spec import EarlyStoppingSpec
from tests.support.errors import raises


def snapshot(rank: int, step: int, loss: float | None = None) -> Snapshot:
    metrics = {} if loss is None else {"validation/loss": loss}
    position = Position(step=step, workers=2, metrics=metrics, rows=10 * step, deepspeed={"optimizer": {"eps": 1e-08}})
    scratch = tempfile.TemporaryDirectory()
    (Path(scratch.name) / "state").mkdir()
    (Path(scratch.name) / "state" / f"swapped-{rank}.bin").write_bytes(b"from nvme")
    states = {f"state/zero_pp_rank_{rank}_optim_states.pt": {"weights": torch.full((1000,), float(rank))}}
    return Snapshot(rank, position, states, scratch)


def write(home: Path, step: int, loss: float | None = None, ranks: tuple[int, ...] = (1, 0)) -> Path:
    target = home / layout.name_of(step, "abc123")
    for rank in ranks:
        snapshot(rank, step, loss).write(str(target))
    return target


def test_a_written_checkpoint_is_whole_and_holds_the_position(tmp_path: Path):
    target = write(tmp_path, 7, 1.5)
    uri, position = newest(str(tmp_path), pytest.fail)  # type: ignore[misc]
    assert (uri, position.step, position.metrics) == (str(target), 7, {"validation/loss": 1.5})
    assert position.deepspeed["optimizer"]["eps"] == 1e-08
    assert torch.load(target / "state" / "zero_pp_rank_1_optim_states.pt")["weights"].eq(1).all()
    assert (target / "state" / "swapped-0.bin").read_bytes() == b"from nvme"


def test_a_checkpoint_without_a_rank_is_incomplete(tmp_path: Path):
    target = write(tmp_path, 7, ranks=(0,))
    with raises(CorruptError, "checkpoint_incomplete", target, "rank-00001.json"):
        inspect(str(target))


@pytest.mark.parametrize("damage", ["cut off", "gone", "changed", "no manifest", "half a position", "another position"])
def test_a_run_falls_back_to_the_checkpoint_before_and_says_so(tmp_path: Path, damage: str):
    before, target = write(tmp_path, 7), write(tmp_path, 9)
    shard = target / "state" / "zero_pp_rank_1_optim_states.pt"
    content = shard.read_bytes()
    if damage == "cut off":
        shard.write_bytes(content[:100])
    elif damage == "gone":
        shard.unlink()
    elif damage == "changed":
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no manifest":
        (target / "rank-00000.json").unlink()
    elif damage == "another position":
        position = target / "position.json"
        position.write_text(position.read_text().replace('"rows": 90', '"rows": 91'))
    else:
        (target / "position.json").write_text('{"step": 9, "wor')
    said: list[str] = []
    uri, position = newest(str(tmp_path), said.append)  # type: ignore[misc]
    assert (uri, position.step) == (str(before), 7)
    assert len(said) == 1
    assert "step-00000009" in said[0]
    assert "falling back to the checkpoint before" in said[0]


def test_a_run_without_a_whole_checkpoint_starts_from_the_beginning(tmp_path: Path):
    assert newest(str(tmp_path / "nowhere"), pytest.fail) is None
    write(tmp_path, 3, ranks=(1,))
    assert newest(str(tmp_path), lambda _: None) is None


def test_the_newest_and_the_best_stay_and_what_was_cut_off_goes(tmp_path: Path):
    cut_off = write(tmp_path, 5, ranks=(1,))
    steps = [write(tmp_path, step, loss) for step, loss in ((10, 2.0), (20, 1.0), (30, 1.5), (40, 1.6), (50, 1.7))]
    on_its_way = write(tmp_path, 60, ranks=(1,))
    prune(str(tmp_path), keep=2)
    assert [Path(uri) for uri in saved(str(tmp_path))] == [on_its_way, steps[4], steps[3], steps[1]]
    assert not cut_off.exists()


def test_a_checkpoint_under_validation_is_kept_and_its_metrics_count(tmp_path: Path):
    steps = [write(tmp_path, step) for step in (10, 20, 30, 40)]
    prune(str(tmp_path), keep=1, validating=steps[1].name)
    assert [Path(uri) for uri in saved(str(tmp_path))] == [steps[3], steps[1]]
    put_validation(str(steps[1]), {"validation/loss": 1.0})
    put_validation(str(steps[3]), {"validation/loss": 1.5})
    prune(str(tmp_path), keep=1)
    uri, position = best(str(tmp_path), pytest.fail)  # type: ignore[misc]
    assert (uri, position.step, position.metrics) == (str(steps[1]), 20, {"validation/loss": 1.0})


def test_the_best_checkpoint_is_that_of_the_lowest_finite_loss_on_the_same_rows(tmp_path: Path):
    def saved_at(step: int, loss: float, comparable: float | None = None) -> str:
        target = write(tmp_path, step, loss)
        position = json.loads((target / "position.json").read_text())
        if comparable is not None:
            position["comparable_loss"] = comparable
            content = json.dumps(position).encode()
            (target / "position.json").write_bytes(content)
            listing = json.loads((target / "rank-00000.json").read_text())
            for entry in listing:
                if entry["path"] == "position.json":
                    entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (target / "rank-00000.json").write_text(json.dumps(listing))
        return str(target)

    saved_at(10, math.nan)
    second = saved_at(20, 1.0)
    saved_at(30, 0.9, comparable=1.1)  # the last one's metrics are of all rows
    uri, position = best(str(tmp_path), pytest.fail)  # type: ignore[misc]
    assert (uri, position.step) == (second, 20)
    prune(str(tmp_path), keep=1)
    assert [Path(uri).name[5:13] for uri in saved(str(tmp_path))] == ["00000030", "00000020"]


def test_a_damaged_best_checkpoint_gives_way_to_the_next(tmp_path: Path):
    lowest, next_lowest = write(tmp_path, 10, 1.0), write(tmp_path, 20, 1.5)
    write(tmp_path, 30, 2.0)
    shard = lowest / "state" / "zero_pp_rank_0_optim_states.pt"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    said: list[str] = []
    uri, _ = best(str(tmp_path), said.append)  # type: ignore[misc]
    assert uri == str(next_lowest)
    assert str(lowest) in said[0]


def test_no_checkpoint_is_the_best_if_no_loss_is_finite(tmp_path: Path):
    write(tmp_path, 10, math.nan)
    write(tmp_path, 20, math.inf)
    assert best(str(tmp_path), pytest.fail) is None


def test_a_loss_that_is_not_finite_is_never_the_lowest():
    position = Position(step=1, workers=1, unjudged=math.nan)
    position, ended = judge(position, EarlyStoppingSpec(patience=2))
    assert (position.lowest_loss, position.validations_since, ended) == (None, 1, "")
    position, _ = judge(position.model_copy(update={"unjudged": 3.0}), EarlyStoppingSpec(patience=2))
    assert (position.lowest_loss, position.validations_since) == (3.0, 0)


def test_the_checkpoint_that_was_resumed_from_and_those_of_this_attempt_outlive_damaged_ones(tmp_path: Path):
    def at(step: int, attempt: str) -> Path:
        target = tmp_path / layout.name_of(step, attempt)
        for rank in (1, 0):
            snapshot(rank, step).write(str(target))
        return target

    for keep in (1, 2):
        resumed, damaged, unread = at(200, "000001"), at(600, "ffffff"), at(400, "fffffe")
        own = at(400, layout.new_attempt())
        prune(str(tmp_path), keep, trusted=["", str(own)], damaged=[str(damaged)])
        assert [Path(uri) for uri in saved(str(tmp_path))] == [own, unread][:keep]
        resumed, again = at(200, "000001"), at(600, "ffffff")
        prune(str(tmp_path), keep, trusted=[str(resumed), str(own)], damaged=[str(again)])
        assert resumed.exists()
        assert own.exists()
        assert not again.exists()
        for uri in saved(str(tmp_path)):
            shutil.rmtree(uri)


def test_checkpoints_of_one_step_are_ordered_by_time_and_steps_as_numbers(tmp_path: Path):
    names = ["step-00000400-ffffff", "step-00000400-6a1b2c3d000000", "step-00000400-6a1b2c3e000000"]
    names += ["step-99999999-6a1b2c3d000000", "step-100000000-6a1b2c3d000000"]
    for name in reversed(names):
        (tmp_path / name).mkdir()
    assert [Path(uri).name for uri in saved(str(tmp_path))] == names[::-1]
    assert layout.age_of(layout.name_of(1, layout.new_attempt())) > layout.age_of("step-00000001-ffffff")


def test_the_last_whole_checkpoint_is_never_deleted(tmp_path: Path):
    good = write(tmp_path, 10)
    for step in (20, 30):
        write(tmp_path, step, ranks=(0,))
    prune(str(tmp_path), keep=1)
    assert good.exists()


def test_a_write_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put, calls, said = uris._write_atomically, [], []

    def one_in_five_fails(uri, write):
        calls.append(uri)
        if len(calls) % 5 == 2:
            raise OSError(28, os.strerror(28))
        put(uri, write)

    monkeypatch.setattr(uris, "_write_atomically", one_in_five_fails)
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    target = tmp_path / layout.name_of(1, "abc123")
    for rank in range(2):
        snapshot(rank, 1).write(str(target), 60, said.append)
    assert inspect(str(target))[0].step == 1
    assert "No space left on device" in said[0]
    assert "retry in 0.5 s" in said[0]


def test_a_write_that_keeps_failing_is_an_error_and_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def unreachable(uri, write):
        raise OSError(113, os.strerror(113))

    monkeypatch.setattr(uris, "_write_atomically", unreachable)
    with pytest.raises(StorageError, match="No route to host"):
        snapshot(0, 1).write(str(tmp_path / layout.name_of(1, "abc123")))
    assert newest(str(tmp_path), lambda _: None) is None


def test_a_disk_that_fills_while_a_shard_is_written_is_an_error_of_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put, room = uris._write_atomically, 2000

    class Full:
        def __init__(self, target):
            self.target, self.size = target, 0

        def write(self, data):
            self.size += len(data)
            if self.size > room:
                raise OSError(28, os.strerror(28))
            return self.target.write(data)

        def flush(self):
            self.target.flush()

    monkeypatch.setattr(uris, "_write_atomically", lambda uri, write: put(uri, lambda target: write(Full(target))))
    # torch.save itself raises a RuntimeError about positions.
    with pytest.raises(StorageError, match="No space left on device"):
        snapshot(0, 1).write(str(tmp_path / layout.name_of(1, "abc123")))
    assert not list(tmp_path.rglob("*.pt*"))


def test_a_snapshot_does_not_change_with_the_state_it_was_taken_of():
    weights = torch.zeros(4)
    state = {"a": weights, "tied": [weights], "inner": {"step": 1, "moments": (torch.ones(2),)}}
    taken = copied(state, {})
    weights += 1
    state["inner"]["step"] = 2
    assert taken["a"].eq(0).all()
    assert taken["tied"][0] is taken["a"]
    assert taken["inner"]["step"] == 1
