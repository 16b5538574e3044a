"""Faults of checkpoints while a run trains: kills in each phase, storage that fails, damage."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import StorageError
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.training import run
from maas_ray.training.checkpoints.catalog import inspect, newest, saved
from maas_ray.training.ray_train import launch
from maas_ray.training.spec import TrainSpec
from tests.support.faulty import FULL, ONE_IN_FIVE, UNREACHABLE, faulty, met
from tests.support.recording import consumed, every_row_once, fed, recording

pytestmark = pytest.mark.usefixtures("cluster")
EPOCHS = 4


def spec_of(dataset: PreparedDataset, model: str, **changes: object) -> TrainSpec:
    fields = {
        "dataset": dataset.uri,
        "model": model,
        "run": "it",
        "network": {"type": "cnn", "channels": [8], "hidden_size": 16},
        "workers": 2,
        "cpus_per_worker": 0.5,
        "precision": "fp32",
        "batch_size": 32,
        "epochs": EPOCHS,
        "validation": {"every_steps": 100_000},
    }
    return TrainSpec.parse(fields | changes)


PHASES = ("copying", "writing shards", "before its manifest", "after the manifest of another", "pruning")


def dying(directory: Path, phases: Sequence[str]) -> Callable[[], None]:
    """Makes a worker kill itself in phases of a checkpoint, once in each; a file for each says that it did.

    It dies in the second checkpoint after a start, so that each start has got a little further.
    """
    target = str(directory)

    def install() -> None:
        import os
        import signal
        import time
        from pathlib import Path

        import ray.train

        from maas_ray import storage
        from maas_ray.training.checkpoints import snapshot

        rank, taken = ray.train.get_context().get_world_rank(), []
        this_time = next((name for name in phases if not (Path(target) / name).exists()), None)
        take, copied, put, write_json, delete = (
            snapshot.take,
            snapshot.copied,
            storage.put,
            storage.write_json,
            storage.delete,
        )

        def due(phase, of_rank):
            return phase == this_time and rank == of_rank and len(taken) > 1

        def die(phase):
            (Path(target) / phase).touch()
            os.kill(os.getpid(), signal.SIGKILL)

        def taking(engine, rank, position):
            if position.step:  # otherwise it is the rehearsal's
                taken.append(position)
            return take(engine, rank, position)

        def copying(*arguments):
            if due("copying", 1):
                die("copying")
            return copied(*arguments)

        def putting(uri, write):
            def half(file):
                file.write(b"half of it")
                file.flush()
                die("writing shards")

            return put(uri, half if due("writing shards", 1) else write)

        def writing(uri, document):
            if due("before its manifest", 0):
                die("before its manifest")
            if due("after the manifest of another", 1):
                while not Path(uri).with_name("rank-00000.json").exists():
                    time.sleep(0.01)
                die("after the manifest of another")
            write_json(uri, document)

        def deleting(uri):
            if due("pruning", 0):
                next(path for path in Path(uri).rglob("*") if path.is_file()).unlink()
                die("pruning")
            delete(uri)

        snapshot.take, snapshot.copied = taking, copying
        storage.put, storage.write_json, storage.delete = putting, writing, deleting

    return install


@pytest.mark.parametrize(
    "phases",
    [
        pytest.param(("after the manifest of another", "pruning"), id="two"),
        # `unit/training/test_commit.py` kills a process in each of them.
        pytest.param(PHASES, marks=pytest.mark.slow, id="all"),
    ],
)
def test_a_kill_in_a_phase_of_a_checkpoint_costs_the_steps_since_the_one_before(
    settings: Settings,
    digits: PreparedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    phases: Sequence[str],
):
    for name in ("killed", "fed"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(launch, "train_worker", recording(tmp_path / "fed", dying(tmp_path / "killed", phases)))
    model = f"dying-{len(phases)}"
    spec = spec_of(digits, model, checkpoint={"every_steps": 15, "keep": 1}, max_failures=len(phases))
    version = run.train(spec, settings=settings)
    assert version.reference == f"{model}/1"
    assert {path.name for path in (tmp_path / "killed").iterdir()} == set(phases)
    said = capsys.readouterr().out
    assert said.count("resumed from the checkpoint at step") == len(phases)
    assert consumed(tmp_path / "fed") == every_row_once(digits.split("train").rows, EPOCHS)
    # The last one, the one before, and the one of the lowest loss; nothing of those that were cut off.
    left = saved(f"{settings.storage}/runs/{model}/it")
    assert len(left) <= 3
    for uri in left:
        inspect(uri)


@contextmanager
def _meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do something beside the block, and fail if that did."""
    failed: list[BaseException] = []

    def acting() -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=acting, daemon=True)
    thread.start()
    yield
    thread.join(timeout=60)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def _wait_for(home: Path, number: int) -> None:
    """Wait until a run of two workers has had so many checkpoints whose manifests are there."""
    seen: set[str] = set()
    while len(seen) < number:
        seen |= {path.parent.name for path in home.glob("step-*/rank-00001.json")}
        time.sleep(0.05)


def _damage(uri: str, how: Callable[[Path], Any]) -> None:
    shards = Path(uri.removeprefix("faulty://"), "state").glob("*optim_states.pt")
    how(sorted(shards)[0])


def test_storage_that_fails_is_tried_again_then_ends_the_run_which_goes_on_once_it_is_back(
    settings: Settings, digits: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    every = 10
    rows, told, home = tmp_path / "rows", tmp_path / "told", tmp_path / "runs" / "stored" / "it"
    rows.mkdir()
    told.write_text(ONE_IN_FIVE)
    register = faulty(told)
    register()
    monkeypatch.setattr(launch, "train_worker", recording(rows, register))
    settings = settings.model_copy(update={"storage": f"faulty://{tmp_path}"})
    spec = spec_of(digits, "stored", checkpoint={"every_steps": every, "keep": 3, "retry_seconds": 6}, max_failures=1)

    def fail() -> None:
        _wait_for(home, 2)
        told.write_text(UNREACHABLE)
        while not met(told).exists():
            time.sleep(0.05)
        time.sleep(1)
        told.write_text(ONE_IN_FIVE)
        _wait_for(home, 6)
        told.write_text(FULL)

    with (
        _meanwhile(fail),
        pytest.raises(StorageError, match=r"No space left on device(?s:.*)starting it again resumes from") as caught,
    ):
        run.train(spec, settings=settings)
    assert "runs/stored/it/step-" in str(caught.value), "it says what could not be written"
    said = capsys.readouterr().out
    for reason in ("Input/output error", "Could not connect to the endpoint", "No space left on device"):
        assert re.search(rf"{reason}; retry in [\d.]+ s", said), reason
    assert said.count("worker 0: ") > 1
    assert said.count("worker 1: ") > 1
    assert said.count("resumed from the checkpoint at step") == 1
    assert Registry(settings).models().get("stored", []) == []
    whole, position = newest(f"faulty://{home}", print)
    most = max(line["step"] for line in fed(rows))
    assert position.step + every < most <= position.step + 2 * every, "two intervals are unsaved, no more"

    told.write_text(UNREACHABLE)
    with pytest.raises(StorageError, match="Could not connect to the endpoint"):  # and it does not begin anew
        run.train(spec, settings=settings)

    # Before it goes on, the newest is cut off, and of the one before a shard is gone.
    told.write_text(ONE_IN_FIVE)
    last, before, third = [uri for uri in saved(f"faulty://{home}") if uri <= whole][:3]
    _damage(last, lambda shard: os.truncate(shard, 100))
    _damage(before, Path.unlink)
    version = run.train(spec, settings=settings)
    assert version.reference == "stored/1"
    said = capsys.readouterr().out
    assert "has 100 bytes; its manifest says" in said
    assert "is missing" in said
    assert said.count("falling back to the checkpoint before") >= 2
    assert f"resumed from the checkpoint at step {int(third.split('step-')[1][:8])}" in said
    assert consumed(rows) == every_row_once(digits.split("train").rows, EPOCHS)
    version.open().artifact.verify()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of a few megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=False).returncode:
        pytest.skip("may not mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.soak
def test_a_disk_that_is_full_ends_a_run_which_goes_on_once_there_is_room(
    settings: Settings, digits: PreparedDataset, small_disk: Path, capsys
):
    settings = settings.model_copy(update={"storage": str(small_disk)})
    spec = spec_of(digits, "full", checkpoint={"every_steps": 10, "retry_seconds": 3}, max_failures=1)
    ballast, over = small_disk / "ballast", threading.Event()

    def fill() -> None:
        _wait_for(small_disk / "runs" / "full" / "it", 3)
        with ballast.open("ab", buffering=0) as file:
            while not over.wait(0.02):  # also what old checkpoints leave when they are deleted
                with suppress(OSError):
                    while True:
                        file.write(bytes(4096))

    with _meanwhile(fill):
        with pytest.raises(StorageError, match="No space left on device"):
            run.train(spec, settings=settings)
        over.set()
    ballast.unlink()
    assert not list(small_disk.rglob("*.partial"))
    assert run.train(spec, settings=settings).reference == "full/1"
    said = capsys.readouterr().out
    assert said.count("resumed from the checkpoint at step") == 2
    assert "each of them once in an epoch" in said
