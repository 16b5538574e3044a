"""Cost of the platform in training: tokens/s of `maas train` ÷ tokens/s of a bare DeepSpeed loop.

All sides train the same network on the same rows with the same DeepSpeed configuration, environment and number of
workers. The bare loop holds all its rows in memory and does nothing but forward, backward and step. It runs twice:
in processes of its own, and as the training function of plain Ray Train, which shows what Ray's processes take where
training workers leave them no core. Ours is `maas train` as it is, with its feed, ledger, reports and events. They
take turns, each in fresh processes, in one run; steps at the start are left out of all.

    python benchmarks/train_overhead.py --dataset URI [--rounds 3] [--steps 200]
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

WARM_UP = 40


def bare(rank: int, port: int, fields: dict, results: str) -> None:
    """A plain DeepSpeed loop over tensors in memory."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(fields["workers"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import deepspeed
    import numpy as np
    import torch

    from maas_ray.data.dataset import open_dataset
    from maas_ray.settings import Settings
    from maas_ray.training.deepspeed.batch import batch_geometry
    from maas_ray.training.deepspeed.resolve import resolve
    from maas_ray.training.feed import rows_of
    from maas_ray.training.preflight import make_plan
    from maas_ray.training.spec import TrainSpec

    spec = TrainSpec.parse(fields)
    on_cpu = not torch.cuda.is_available()
    device = torch.device("cpu" if on_cpu else f"cuda:{rank}")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo" if on_cpu else "nccl")
    dataset = open_dataset(Settings.from_environment(), spec.dataset)
    plan = make_plan(spec, dataset)
    config = resolve(
        spec,
        workers=spec.workers,
        total_steps=plan.total_steps,
        hidden_size=spec.network.hidden_size,
        on_cpu=on_cpu,
    )
    _, micro, accumulation = batch_geometry(spec, spec.workers)
    pieces = [
        rows_of(dataset, plan, rank, spec.workers, *read)["input_ids"]
        for read in plan.reads(rank, spec.workers, 0, 4096)
    ]
    rows = np.concatenate(pieces)
    torch.manual_seed(spec.seed)
    task = dataset.task
    network = spec.network.build(task)
    engine, _, _, _ = deepspeed.initialize(
        model=network, model_parameters=network.parameters(), config=config, dist_init_required=False
    )
    engine.train()
    place = 0
    for step in range(plan.total_steps):
        if step == WARM_UP:
            started = time.perf_counter()
        for _ in range(accumulation):
            batch = task.collate({"input_ids": rows[place : place + micro]})
            loss = task.loss(engine, {name: tensor.to(device) for name, tensor in batch.items()})
            engine.backward(loss)
            engine.step()
            place += micro
    if rank == 0:
        loss.item()
        seconds = time.perf_counter() - started
        steps = plan.total_steps - WARM_UP
        Path(results).write_text(json.dumps(steps * plan.batch_size * task.units_per_row / seconds))


def run_bare(fields: dict) -> float:
    """Tokens a second of the bare loop."""
    import socket

    import torch

    from maas_ray.training.worker.job import worker_environment

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        results = f"{directory}/tokens_per_second"
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=bare, args=(r, port, fields, results)) for r in range(fields["workers"])]
        before = dict(os.environ)
        os.environ |= worker_environment(on_cpu=not torch.cuda.is_available(), threads=1)
        for worker in workers:
            worker.start()
        os.environ.clear()
        os.environ |= before
        for worker in workers:
            worker.join()
        return json.loads(Path(results).read_text())


def run_in_ray(fields: dict, number: int) -> float:
    """Tokens a second of the same bare loop, run by Ray Train's workers."""
    import socket

    import torch
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from maas_ray.training.worker.job import worker_environment

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        results = f"{directory}/tokens_per_second"
        on_gpu = torch.cuda.is_available()

        def loop() -> None:
            import ray.train

            os.chdir(root)
            bare(ray.train.get_context().get_world_rank(), port, fields, results)

        root = os.getcwd()
        DataParallelTrainer(
            loop,
            scaling_config=ScalingConfig(num_workers=fields["workers"], use_gpu=on_gpu),
            run_config=RunConfig(
                name=f"bare-{number}",
                storage_path=directory,
                worker_runtime_env={"env_vars": worker_environment(on_cpu=not on_gpu, threads=1)},
            ),
        ).fit()
        return json.loads(Path(results).read_text())


def run_ours(fields: dict, number: int) -> float:
    """Tokens a second of `maas train`, as it reports them to MLflow."""
    from maas_ray.registry.versions import Registry
    from maas_ray.settings import Settings
    from maas_ray.training.run import train
    from maas_ray.training.spec import TrainSpec

    settings = Settings.from_environment()
    spec = TrainSpec.parse(fields | {"run": f"overhead-{os.getpid()}-{number}", "log_every_steps": WARM_UP})
    version = train(spec, settings=settings)
    history = Registry(settings).client.get_metric_history(version.lineage.run_id, "train/step_seconds")
    seconds = [metric.value for metric in history if metric.step > WARM_UP]
    rate = Registry(settings).client.get_metric_history(version.lineage.run_id, "train/units_per_second")[0]
    first = next(metric.value for metric in history if metric.step == rate.step)
    return rate.value * first / statistics.fmean(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="stdlib", help="a prepared text-generation dataset: name or URI")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    fields = {
        "dataset": arguments.dataset,
        "model": "train-overhead",
        "network": {"type": "llama", "hidden_size": 128, "layers": 4, "heads": 4},
        "deepspeed": "jobs/specs/deepspeed/zero1-bf16.json",
        "workers": arguments.workers,
        "batch_size": 8 * arguments.workers,
        "micro_batch_size": 8,
        "max_steps": arguments.steps,
        "learning_rate": 2e-3,
        "checkpoint": {"every_steps": 100_000},
        "validation": {"every_steps": 100_000},
    }
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    from maas_ray.cluster import connect
    from maas_ray.settings import Settings

    connect(Settings.from_environment())
    sides: dict[str, list[float]] = {"maas": [], "bare": [], "bare in Ray Train": []}
    for number in range(arguments.rounds):
        sides["bare"].append(run_bare(fields))
        sides["bare in Ray Train"].append(run_in_ray(fields, number))
        sides["maas"].append(run_ours(fields, number))
        print(f"round {number + 1}: " + ", ".join(f"{name} {found[-1]:,.0f}" for name, found in sides.items()))
        sys.stdout.flush()
    print(f"medians of {arguments.rounds}, tokens/s: " + show(sides.items(), ",.0f"))
    for name in ("bare", "bare in Ray Train"):
        ratios = [ours / theirs for ours, theirs in zip(sides["maas"], sides[name], strict=True)]
        print(f"maas ÷ {name}: {statistics.median(ratios):.3f} (lowest {min(ratios):.3f}, highest {max(ratios):.3f})")


def show(sides: Iterable[tuple[str, list[float]]], form: str) -> str:
    return ", ".join(f"{name} {statistics.median(found):{form}}" for name, found in sides)


if __name__ == "__main__":
    main()
