"""A process that is killed in any phase of a checkpoint's commit leaves the checkpoint before, or a whole one."""

import json
import subprocess
import sys

import pytest

COMMIT = """
import json, os, sys, tempfile
from pathlib import Path

import torch

from maas_ray import storage
from maas_ray.training.checkpoints import catalog, layout, snapshot
from maas_ray.training.checkpoints.position import Position


def commit(home, step, rank, resumed=""):
    # A rank's part of a checkpoint, by the functions that a worker calls. The first rank deletes old ones.
    scratch = tempfile.TemporaryDirectory()
    states = {f"state/zero_pp_rank_{rank}_optim_states.pt": {"weights": torch.full((5000,), float(step))}}
    position = Position(step=step, workers=2, rows=10 * step)
    target = f"{home}/{layout.name_of(step, 'abc123')}"
    snapshot.Snapshot(rank, position, states, scratch).write(target)
    if rank == 0:
        catalog.prune(home, 1, trusted=[resumed, target])


def dying(phase):
    # The process ends in the phase, as if it were killed: nothing is cleaned up.
    def die(*_):
        os._exit(9)

    put, write_json, delete = storage.put, storage.write_json, storage.delete

    def half(file):
        file.write(b"half of it")
        file.flush()
        die()

    def partly(uri):
        next(path for path in Path(uri).rglob("*") if path.is_file()).unlink()
        die()

    if phase == "shards":
        storage.put = lambda uri, write: put(uri, half)
    elif phase == "manifest":
        storage.write_json = die
    elif phase == "pruning":
        storage.delete = partly


# Each phase: the ranks in the order in which they write, and which of them dies.
for home, phase, ranks, victim in json.loads(sys.argv[1]):
    for step in (10, 20):
        for rank in (1, 0):
            commit(home, step, rank)
    process = os.fork()
    if not process:
        for rank in ranks:
            if rank == victim:
                dying(phase)
            commit(home, 30, rank)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    skipped = []
    resumed, position = catalog.newest(home, skipped.append)
    for rank in (1, 0):
        commit(home, 40, rank, resumed)
    left = [catalog.inspect(uri)[0].step for uri in catalog.saved(home)]
    print(json.dumps([status, position.step, len(skipped), left]))
"""

PHASES = {
    "a shard is half written": ("shards", (0, 1), 1),
    "before any manifest": ("manifest", (1, 0), 1),
    "before the first rank's manifest": ("manifest", (1, 0), 0),
    "after the first rank's manifest": ("manifest", (0, 1), 1),
    "an old one is half deleted": ("pruning", (1, 0), 0),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """For each phase: the status of the process that died while it wrote the checkpoint of step 30; the step that the
    next attempt resumes from, and how many checkpoints it skips; the steps that are left once that attempt has saved
    step 40, each of them whole.
    """
    phases = [[str(tmp_path_factory.mktemp("run")), *phase] for phase in PHASES.values()]
    command = [sys.executable, "-W", "ignore", "-c", COMMIT, json.dumps(phases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(PHASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", PHASES)
def test_a_commit_that_is_cut_off_costs_that_checkpoint_alone(found: dict[str, list[object]], name: str):
    if name == "an old one is half deleted":
        assert found[name] == [9, 30, 0, [40, 30]]
    else:
        assert found[name] == [9, 20, 1, [40, 20]]
