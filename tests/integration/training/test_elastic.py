"""Runs whose machines come and go: a cluster of their own, each of its nodes a raylet with one CPU."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from maas_ray import cluster as clusters
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from tests.support.datasets import text_dataset

pytestmark = pytest.mark.soak
RAY = str(Path(sys.executable).parent / "ray")
DRIVER = """
import json, sys
from maas_ray.training import run
from maas_ray.training.ray_train import launch
from maas_ray.training.spec import TrainSpec

launch._RESIZE_SECONDS = 2.0
run.train(TrainSpec.parse(json.loads(sys.argv[1])))
"""


class Nodes:
    """A Ray cluster on this machine to which nodes of one CPU are added."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        token = directory / "token"
        token.write_text("0123456789abcdef" * 4)
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = own | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        }
        self.started: list[subprocess.Popen[str]] = []  # processes that `end` ends
        port = clusters.free_ports(1)[0]
        self._start(
            *("--head", "--port=0", f"--temp-dir={directory}/r", "--include-dashboard=false"),
            *("--dashboard-agent-listen-port=0", f"--ray-client-server-port={port}"),
        )
        address = directory / "r" / "ray_current_cluster"
        _await(lambda: address.is_file() and address.read_text().strip())
        self.environment["RAY_ADDRESS"] = self._address = address.read_text().strip()

    def add(self) -> psutil.Process:
        """A new node's raylet."""
        parent = self._start(f"--address={self._address}")
        found: list[psutil.Process] = []
        _await(lambda: found.extend(p for p in parent.children(recursive=True) if p.name() == "raylet") or found)
        return found[0]

    def drain(self, raylet: psutil.Process, seconds: int) -> None:
        """The effect of a cloud's notice for a spot machine."""
        (node,) = (word.partition("=")[2] for word in raylet.cmdline() if re.match("--node.id=", word))
        subprocess.run(
            [
                *(RAY, "drain-node", f"--address={self._address}", f"--node-id={node}"),
                *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"),
                f"--deadline-remaining-seconds={seconds}",
            ],
            env=self.environment,
            check=True,
            capture_output=True,
        )

    def end(self) -> None:
        running = [psutil.Process(process.pid) for process in self.started if process.poll() is None]
        family = [child for process in running for child in process.children(recursive=True)]
        for process in self.started:
            process.terminate()
        for process in self.started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        for process in family:
            with suppress(psutil.Error):
                process.kill()

    def _start(self, *arguments: str) -> psutil.Process:
        command = [
            *(RAY, "start", "--block", "--num-cpus=1", f"--object-store-memory={128 << 20}", *arguments),
            *("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
        ]
        with (self._directory / f"node-{len(self.started)}.log").open("w") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, text=True)
        self.started.append(process)
        return psutil.Process(process.pid)


class Driver:
    """A run in a process of its own, and what it has said."""

    def __init__(self, nodes: Nodes, spec: dict[str, object]) -> None:
        command = [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(spec)]
        self.process = subprocess.Popen(
            command, env=nodes.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        nodes.started.append(self.process)
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.said += line

    def wait_for(self, pattern: str, times: int = 1) -> None:
        _await(lambda: len(re.findall(pattern, self.said)) >= times or self.process.poll() is not None)
        assert len(re.findall(pattern, self.said)) >= times, self.said

    def wait(self) -> str:
        """All it has said, at its end."""
        status = self.process.wait(300)
        self._reader.join()
        assert status == 0, self.said
        return self.said


def _await(condition: Callable[[], object], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    # Outside pytest's own directories: Ray puts sockets in it, whose paths end at 107 bytes.
    with tempfile.TemporaryDirectory(prefix="maas-e", dir="/tmp", ignore_cleanup_errors=True) as directory:
        nodes = Nodes(Path(directory))
        try:
            yield nodes
        finally:
            nodes.end()


def _spec(settings: Settings, model: str, **changes: object) -> dict[str, object]:
    return {
        "dataset": text_dataset(settings, model).uri,
        "model": model,
        "network": {"type": "llama", "hidden_size": 64, "layers": 2, "heads": 2},
        "workers": [1, 2],
        "batch_size": 16,
        "epochs": 100,
        "max_steps": 800,
        "precision": "fp32",
        "learning_rate": 3e-3,
        # No checkpoint of its own: what is not lost was saved because of the notice.
        "checkpoint": {"every_steps": 100_000},
        **changes,
    }


def test_a_run_grows_with_the_cluster_and_leaves_a_machine_that_is_about_to_go(settings: Settings, nodes: Nodes):
    run = Driver(nodes, _spec(settings, "comes-and-goes"))
    run.wait_for(r"training \d+/")
    raylet = nodes.add()
    run.wait_for("resumed from .*, made by 1 worker, on 2 workers")
    steps = len(re.findall(r"training \d+/", run.said))
    run.wait_for(r"training \d+/", steps + 1)
    nodes.drain(raylet, 60)
    run.wait_for("resumed from .*, made by 2 workers, on 1 worker")
    said = run.wait()
    saved = [int(step) for step in re.findall(r"saving at step (\d+)", said)]
    assert saved == [int(step) for step in re.findall(r"resumed from the checkpoint at step (\d+)", said)]
    assert len(saved) == 2
    assert said.count("the number of workers changes from 1 to 2") == 1
    assert said.count("a machine of this run was taken away; starting the workers again") == 1
    assert said.count("12,800 rows trained on, each of them once in an epoch") == 1
    assert [version.reference for version in Registry(settings).versions("comes-and-goes")] == ["comes-and-goes/1"]


@pytest.mark.parametrize("workers", [[1, 2], 2])
def test_a_machine_that_dies_costs_only_the_steps_since_the_last_checkpoint(
    settings: Settings, nodes: Nodes, workers: object
):
    raylet = nodes.add()
    model = f"machine-dies-{workers if workers == 2 else 'elastic'}"
    run = Driver(nodes, _spec(settings, model, workers=workers, checkpoint={"every_steps": 50}))
    run.wait_for("checkpoint saved")
    raylet.kill()
    if workers == 2:
        run.wait_for("waiting for room for 2 workers of 1 CPU each; free now: ")
        nodes.add()
    said = run.wait()
    assert len(re.findall(r"worker \d died \(.*\); starting the workers again", said)) == 1
    assert ("the number of workers changes from 2 to 1" in said) == (workers != 2)
    assert said.count("12,800 rows trained on, each of them once in an epoch") == 1
