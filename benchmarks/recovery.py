"""Cost of a killed worker: seconds from SIGKILL to the first optimizer step after it, phase by phase.

`maas train` beside plain Ray Train with DeepSpeed: the same network, rows, DeepSpeed configuration, number of workers
and interval of checkpoints; the plain loop keeps its rows in memory, saves with `save_checkpoint` and
`ray.train.report`, and goes on from `ray.train.get_checkpoint()`. Each is killed at the same step, in turns, in one
run. For ours the rows are counted too: the ledger of the last checkpoint against the plan's.

    detect   until Ray Train has ended the workers that are left
    start    until the function has begun on the new workers
    load     finding, checking and loading the checkpoint
    engine   importing DeepSpeed, building the network and the engine
    step     the first batch and the first optimizer step

    python benchmarks/recovery.py --dataset URI [--rounds 2] [--every 20]

Times come from the workers themselves, which write a line at the end of each phase, and from watching the process
table; a phase ends with the last worker. For one machine, as its clock and its files are shared.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = ("detect", "start", "load", "engine", "step")


# --- what runs in the workers -----------------------------------------------------------------------


def stamper(directory: str) -> Callable[..., None]:
    """Writes a line for each thing that happens in this worker."""
    import ray.train

    path = Path(directory) / f"rank-{ray.train.get_context().get_world_rank()}.jsonl"

    def stamp(what: str, step: int = 0) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"what": what, "step": step, "pid": os.getpid(), "time": time.time()}) + "\n")

    return stamp


def ours_in(directory: str) -> Callable[[dict], Any]:
    """The worker of `maas train`, with stamps."""

    def train_worker(config: dict) -> Any:
        stamp = stamper(directory)
        stamp("function")
        from maas_ray.training.worker import entry, loop

        class Stamped(loop.Worker):  # without annotations: it travels by value, and they would not
            def __init__(self, job):
                super().__init__(job)
                stamp("loaded", self.position.step)

            def _engine(self, config, *, spare):
                stamp("found")
                engine = super()._engine(config, spare=spare)
                stamp("engine")
                return engine

            def _step(self, step, feed):
                super()._step(step, feed)
                stamp("step", step)

        entry.Worker = Stamped
        return entry.train_worker(config)

    return train_worker


def plain_in(directory: str) -> Callable[[dict], None]:
    """The equivalent with Ray Train and DeepSpeed alone."""

    def train_loop(config: dict) -> None:
        stamp = stamper(directory)
        stamp("function")
        import deepspeed
        import numpy as np
        import ray.train
        import torch

        from maas_ray.training.deepspeed.batch import batch_geometry
        from maas_ray.training.deepspeed.resolve import resolve
        from maas_ray.training.feed import rows_of

        spec, dataset, plan = config["spec"], config["dataset"], config["plan"]
        rank, task, on_cpu = ray.train.get_context().get_world_rank(), dataset.task, not torch.cuda.is_available()
        device = torch.device("cpu") if on_cpu else ray.train.torch.get_device()
        stamp("found")
        if on_cpu:
            torch.set_num_threads(1)
        torch.manual_seed(spec.seed)
        network = spec.network.build(task)
        engine, _, _, _ = deepspeed.initialize(
            model=network,
            model_parameters=network.parameters(),
            config=resolve(
                spec,
                workers=spec.workers,
                total_steps=plan.total_steps,
                hidden_size=spec.network.hidden_size,
                on_cpu=on_cpu,
            ),
            dist_init_required=False,
        )
        engine.train()
        stamp("engine")
        done, saved = 0, ray.train.get_checkpoint()
        if saved:
            with saved.as_directory() as local:
                _, state = engine.load_checkpoint(local, tag="state")
            done = state["step"]
        stamp("loaded", done)
        _, micro, passes = batch_geometry(spec, spec.workers)
        reads = plan.reads(rank, spec.workers, done, 4096)
        rows = np.concatenate([rows_of(dataset, plan, rank, spec.workers, *read)["input_ids"] for read in reads])
        place = 0
        for step in range(done + 1, plan.total_steps + 1):
            for _ in range(passes):
                batch = task.collate({"input_ids": rows[place : place + micro]})
                loss = task.loss(engine, {name: tensor.to(device) for name, tensor in batch.items()})
                engine.backward(loss)
                engine.step()
                place += micro
            stamp("step", step)
            if step % spec.checkpoint.every_steps == 0:
                with tempfile.TemporaryDirectory() as local:
                    (Path(local) / "state").mkdir()
                    engine.save_checkpoint(local, tag="state", client_state={"step": step}, save_latest=False)
                    ray.train.report({"loss": loss.item()}, checkpoint=ray.train.Checkpoint.from_directory(local))

    return train_loop


# --- killing and watching ---------------------------------------------------------------------------


def stamps(directory: str) -> list[list[dict]]:
    """The time stamps that each rank has written."""
    files = sorted(Path(directory).glob("rank-*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] for file in files]


def kill_at(directory: str, step: int, killed: dict[str, float]) -> None:
    """Kill the last rank once it has made so many steps; note when, and when Ray Train had ended the others."""
    import psutil

    while not ((seen := stamps(directory)) and len(seen) > 1 and seen[-1][-1:] and seen[-1][-1]["step"] >= step):
        time.sleep(0.02)
    others = [psutil.Process(lines[-1]["pid"]) for lines in seen[:-1]]
    killed["kill"] = time.time()
    os.kill(seen[-1][-1]["pid"], signal.SIGKILL)

    def alive(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    while any(alive(process) for process in others):
        time.sleep(0.01)
    killed["ended"] = time.time()


def measured(run: Callable[[str], None], step: int) -> dict[str, float]:
    """Seconds of each phase of the recovery, and the steps done again."""
    with tempfile.TemporaryDirectory(prefix="maas-recovery-") as directory:
        killed: dict[str, float] = {}
        thread = threading.Thread(target=kill_at, args=(directory, step, killed), daemon=True)
        thread.start()
        run(directory)
        thread.join(timeout=1)
        if "ended" not in killed:
            sys.exit("the run was over before a worker could be killed: raise --every")
        ranks = stamps(directory)
    after = [[line for line in lines if line["time"] > killed["ended"]] for lines in ranks]
    first = {
        what: [next(line for line in lines if line["what"] == what) for lines in after]
        for what in ("function", "found", "engine", "loaded", "step")
    }
    at = {what: max(line["time"] for line in lines) for what, lines in first.items()}
    reached = max(line["step"] for line in ranks[0] if line["time"] < killed["ended"])
    return {
        "detect": killed["ended"] - killed["kill"],
        "start": at["function"] - killed["ended"],
        "load": at["found"] - at["function"] + at["loaded"] - at["engine"],
        "engine": at["engine"] - at["found"],
        "step": at["step"] - at["loaded"],
        "in all": at["step"] - killed["kill"],
        "steps redone": reached - first["loaded"][0]["step"],
    }


# --- the two sides ----------------------------------------------------------------------------------


def run_ours(fields: dict, name: str, step: int) -> dict[str, float]:
    """A run of `maas train`; its rows by the ledger."""
    from maas_ray.data.dataset import open_dataset
    from maas_ray.settings import Settings
    from maas_ray.training.checkpoints.catalog import newest
    from maas_ray.training.preflight import make_plan
    from maas_ray.training.ray_train import launch
    from maas_ray.training.run import train
    from maas_ray.training.runs.record import run_home
    from maas_ray.training.spec import TrainSpec

    settings, spec = Settings.from_environment(), TrainSpec.parse(fields | {"run": name})
    own = launch.train_worker

    def run(directory: str) -> None:
        launch.train_worker = ours_in(directory)
        try:
            train(spec, settings=settings)
        finally:
            launch.train_worker = own

    found = measured(run, step)
    plan = make_plan(spec, open_dataset(settings, spec.dataset))
    _, position = newest(run_home(settings, spec.model, name), print)
    due = plan.ledger_at(plan.total_steps)
    print(
        f"ledger: {position.rows:,} rows of {due.rows:,} due, "
        + ("each of them once" if position.ledger == due else "NOT those of the plan")
    )
    return found


def run_plain(fields: dict, name: str, step: int) -> dict[str, float]:
    """A run of the plain loop."""
    import torch
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from maas_ray.data.dataset import open_dataset
    from maas_ray.settings import Settings
    from maas_ray.training.preflight import make_plan
    from maas_ray.training.spec import TrainSpec
    from maas_ray.training.worker.job import worker_environment

    settings, spec = Settings.from_environment(), TrainSpec.parse(fields)
    dataset = open_dataset(settings, spec.dataset)
    on_cpu = not torch.cuda.is_available()

    def run(directory: str) -> None:
        TorchTrainer(
            plain_in(directory),
            train_loop_config={"spec": spec, "dataset": dataset, "plan": make_plan(spec, dataset)},
            torch_config=TorchConfig(backend="gloo" if on_cpu else "nccl"),
            scaling_config=ScalingConfig(num_workers=spec.workers, use_gpu=not on_cpu),
            run_config=RunConfig(
                name=name,
                storage_path=f"{settings.storage}/plain",
                failure_config=FailureConfig(max_failures=spec.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                worker_runtime_env={"env_vars": worker_environment(on_cpu=on_cpu, threads=1)},
            ),
        ).fit()

    return measured(run, step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="stdlib", help="a prepared text-generation dataset: name or URI")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    step = arguments.every * 5 // 2
    fields = {
        "dataset": arguments.dataset,
        "model": "recovery",
        "network": {"type": "llama", "hidden_size": 128, "layers": 4, "heads": 4},
        "deepspeed": "jobs/specs/deepspeed/zero1-bf16.json",
        "workers": arguments.workers,
        "batch_size": 8 * arguments.workers,
        "micro_batch_size": 8,
        "max_steps": arguments.every * 4,
        "learning_rate": 2e-3,
        "checkpoint": {"every_steps": arguments.every},
        "validation": {"every_steps": 100_000},
    }
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    from maas_ray.cluster import connect
    from maas_ray.settings import Settings

    connect(Settings.from_environment())
    sides: dict[str, list[dict[str, float]]] = {"maas": [], "plain": []}
    for number in range(arguments.rounds):
        name = f"recovery-{os.getpid()}-{number}"
        sides["plain"].append(run_plain(fields, name, step))
        sides["maas"].append(run_ours(fields, name, step))
        for side, found in sides.items():
            print(f"round {number + 1}: {side:6} {found[-1]['in all']:.1f} s, {found[-1]['steps redone']} steps redone")
        sys.stdout.flush()
    print(
        f"\nkilled at step {step} with checkpoints every {arguments.every}, {arguments.workers} workers; "
        f"medians of {arguments.rounds} rounds\n{'seconds':14} {'maas':>8} {'plain':>8} {'ratio':>7}"
    )
    for phase in (*PHASES, "in all", "steps redone"):
        pairs = [(mine[phase], other[phase]) for mine, other in zip(sides["maas"], sides["plain"], strict=True)]
        mine, other = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = f"{statistics.median(a / b for a, b in pairs):7.2f}" if phase == "in all" else ""
        print(f"{phase:14} {mine:8.2f} {other:8.2f} {ratio}")


if __name__ == "__main__":
    main()
