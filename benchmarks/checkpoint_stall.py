"""Cost of a checkpoint: seconds that training is blocked ÷ those of a synchronous DeepSpeed checkpoint.

Ours copies the state to host memory (`snapshot.take`) and writes it beside the training (`Snapshot.write`). The
other is what one writes with plain Ray Train: DeepSpeed's `save_checkpoint` into a local directory, then an upload,
and training goes on when both are done. Both save the same state of the same engines, in turns, through the same
`storage` into the same filesystem, with fsync and sha256. The first round is left out.

    python benchmarks/checkpoint_stall.py [--rounds 5] [--stages 1 3] [--layers 8] [--hidden-size 512]

The writing takes processor from the steps beside it, where there is no core to spare most of all: so how slow they
are is shown too, and what training loses in all, blocked or slowed. Left out is what `maas train` waits when the
checkpoint before is still on its way: it has at most one under way.
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

WORKERS = 2
CALM_STEPS = 6
VOCABULARY, LENGTH, ROWS = 8192, 64, 2


def config_of(stage: int) -> dict:
    """DeepSpeed's configuration."""
    return {
        "train_micro_batch_size_per_gpu": ROWS,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
        "steps_per_print": 1 << 30,
    }


class Trainer:
    """One rank: an engine, and the two ways to save it."""

    def __init__(self, rank: int, stage: int, hidden_size: int, layers: int, directory: str) -> None:
        import deepspeed
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from maas_ray.training.deepspeed.untrained import Untrained

        on_cpu = not torch.cuda.is_available()
        self.device = torch.device("cpu" if on_cpu else f"cuda:{rank}")
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo" if on_cpu else "nccl")
        torch.manual_seed(0)
        network = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=hidden_size,
                intermediate_size=-(-hidden_size * 8 // 3 // 32) * 32,
                num_hidden_layers=layers,
                num_attention_heads=hidden_size // 64,
                tie_word_embeddings=True,
            )
        )
        self.parameters = sum(p.numel() for p in network.parameters())
        self.engine, _, _, _ = deepspeed.initialize(
            model=network, model_parameters=network.parameters(), config=config_of(stage), dist_init_required=False
        )
        self.engine.untrained = Untrained([])
        self.engine.train()
        self.rank, self.directory, self.own = rank, Path(directory), self.engine.checkpoint_engine
        self.batch = torch.randint(VOCABULARY, (ROWS, LENGTH), device=self.device)

    def agreed(self, value: float) -> float:
        """The largest of all ranks: they wait for each other."""
        import torch

        tensor = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor.item()

    def step(self) -> float:
        """Seconds of one optimizer step."""
        started = time.perf_counter()
        loss = self.engine(self.batch, labels=self.batch).loss
        self.engine.backward(loss)
        self.engine.step()
        loss.item()
        return self.agreed(time.perf_counter() - started)

    def ours(self, number: int) -> dict[str, float]:
        """Blocked while the state is copied; it is written while steps go on."""
        from maas_ray.training.checkpoints import snapshot
        from maas_ray.training.checkpoints.position import Position

        uri = str(self.directory / f"ours-{number}")
        calm = statistics.median([self.step() for _ in range(CALM_STEPS)])
        snapshot.hold(self.engine)
        self.agreed(0)
        started = time.perf_counter()
        state = snapshot.take(self.engine, self.rank, Position(step=number, workers=WORKERS))
        stall = self.agreed(time.perf_counter() - started)
        taken = {}

        def write() -> None:
            began = time.perf_counter()
            state.write(uri)
            taken["write"] = time.perf_counter() - began

        writer = threading.Thread(target=write)
        writer.start()
        beside = []
        while self.agreed(writer.is_alive()):
            beside.append(self.step())
        writer.join()
        return {
            "stall": stall,
            "write": self.agreed(taken["write"]),
            "calm": calm,
            "beside": statistics.median(beside),
            "lost": stall + sum(seconds - calm for seconds in beside),
            "bytes": self.written(uri),
        }

    def synchronous(self, number: int) -> dict[str, float]:
        """DeepSpeed's own files, and a copy of each in storage."""
        from maas_ray import storage

        self.engine.checkpoint_engine = self.own
        local, uri = self.directory / f"local-{number}-{self.rank}", str(self.directory / f"synchronous-{number}")
        (local / "state").mkdir(parents=True)
        for _ in range(2):
            self.step()
        self.agreed(0)
        started = time.perf_counter()
        self.engine.save_checkpoint(str(local), tag="state", save_latest=False)
        saved = time.perf_counter()
        for path in sorted(file for file in local.rglob("*") if file.is_file()):
            storage.upload(path, storage.join(uri, path.relative_to(local).as_posix()))
        ended = time.perf_counter()
        shutil.rmtree(local)
        return {
            "save": self.agreed(saved - started),
            "blocked": self.agreed(ended - started),
            "bytes": self.written(uri),
        }

    def written(self, uri: str) -> float:
        """Bytes that lie there; they are removed."""
        self.agreed(0)
        size = sum(file.stat().st_size for file in Path(uri).rglob("*") if file.is_file())
        self.agreed(0)
        if self.rank == 0:
            shutil.rmtree(uri)
        return float(size)


def worker(rank: int, port: int, stage: int, arguments: argparse.Namespace, directory: str) -> None:
    """One rank's process."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORKERS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    trainer = Trainer(rank, stage, arguments.hidden_size, arguments.layers, directory)
    rounds = []
    for number in range(arguments.rounds + 1):
        ours, synchronous = trainer.ours(number), trainer.synchronous(number)
        if number:
            rounds.append((ours, synchronous))
    if rank == 0:
        (Path(directory) / "results.json").write_text(json.dumps([trainer.parameters, rounds]))


def run(stage: int, arguments: argparse.Namespace) -> tuple[int, list]:
    """The number of parameters, and what each round measured."""
    import torch

    from maas_ray.training.worker.job import worker_environment

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="maas-stall-") as directory:
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=worker, args=(r, port, stage, arguments, directory)) for r in range(WORKERS)]
        before = dict(os.environ)
        os.environ |= worker_environment(on_cpu=not torch.cuda.is_available(), threads=1)
        for process in workers:
            process.start()
        os.environ.clear()
        os.environ |= before
        for process in workers:
            process.join()
        results = Path(directory) / "results.json"
        if not results.exists():
            sys.exit(f"ZeRO {stage}: a worker failed; see above")
        parameters, rounds = json.loads(results.read_text())
        return parameters, rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 3], help="ZeRO stages")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=512, help="a multiple of 64")
    arguments = parser.parse_args()
    for stage in arguments.stages:
        parameters, rounds = run(stage, arguments)
        ours = {name: [mine[name] for mine, _ in rounds] for name in rounds[0][0]}
        theirs = {name: [other[name] for _, other in rounds] for name in rounds[0][1]}
        medians = {name: statistics.median(values) for name, values in (ours | {"theirs": theirs["bytes"]}).items()}
        save, blocked = (statistics.median(theirs[name]) for name in ("save", "blocked"))
        print(
            f"\nZeRO {stage}, bf16, {parameters / 1e6:.1f} M parameters, {WORKERS} workers, "
            f"medians of {len(rounds)} rounds; {medians['bytes'] / 1e6:,.0f} MB "
            f"(synchronous {medians['theirs'] / 1e6:,.0f} MB)"
        )
        print(f"  synchronous   blocked {blocked:6.3f} s: save_checkpoint {save:.3f}, upload {blocked - save:.3f}")
        print(f"  ours          blocked {medians['stall']:6.3f} s; then writing, {medians['write']:.3f} s beside steps")
        for name, values, beside in (
            ("blocked ÷ synchronous", ours["stall"], theirs["blocked"]),
            ("blocked ÷ save_checkpoint alone", ours["stall"], theirs["save"]),
            ("lost in all ÷ synchronous", ours["lost"], theirs["blocked"]),
            ("a step beside the writing ÷ calm", ours["beside"], ours["calm"]),
        ):
            ratios = [mine / other for mine, other in zip(values, beside, strict=True)]
            print(
                f"  {name:34} {statistics.median(ratios):6.3f}  (lowest {min(ratios):.3f}, highest {max(ratios):.3f})"
            )
        print(f"  a calm step {medians['calm']:.3f} s, beside the writing {medians['beside']:.3f} s")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
