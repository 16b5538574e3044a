"""Cost of exactly-once at scale: the plan of 1,000 workers over 1,000,000 row groups, some 10⁹ rows an epoch.

The claim: a position is one number, so to go on from any step costs a worker the same, and both the plan and
what a checkpoint keeps of it are small. Beside it stands what comes to mind first: the order of all rows,
drawn once and kept, and the indices of those done. It is drawn for a hundredth of the rows and given per million.

    python benchmarks/plan_scale.py [--groups 1000000] [--workers 1000] [--epochs 2] [--rounds 5]

Nothing is read and no Ray started: `Plan` is a pure function. Every round makes a plan anew, so nothing is
remembered from the one before, and looks from other steps than the last. The ledger is made once in a run, at
its end; it is timed once at each of a few steps, as each takes a while.
"""

import argparse
import pickle
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from maas_ray.training.checkpoints.position import Position
from maas_ray.training.plan import Plan

READ_ROWS = 2048  # as the feed requests if a row has 2 KiB
ROWS_A_WORKER = 8  # in a step
SAMPLE = 100


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and what it gives."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def positions(plan: Plan, random: np.random.Generator) -> dict[str, int]:
    """A step in the first and in the last hundredth of the run."""
    near = max(1, plan.total_steps // 100)
    return {
        "near the start": int(random.integers(0, near)),
        "near the end": int(random.integers(plan.total_steps - near, plan.total_steps - 1)),
    }


def resume_times(make: Callable[[], Plan], workers: int, rounds: int) -> None:
    """How long one worker needs to know what to read, from the start and from far on."""
    random = np.random.default_rng(1)
    build, seconds = [], {}
    for _ in range(rounds):
        for where in ("near the start", "near the end"):
            took, plan = timed(make)
            build.append(took)
            step, rank = positions(plan, random)[where], int(random.integers(workers))
            listing, reads = timed(lambda p=plan, r=rank, s=step: p.reads(r, workers, s, READ_ROWS))
            first, _ = timed(lambda p=plan, r=rank, read=reads[0]: p.lanes_of(r, workers, *read))
            again, _ = timed(lambda p=plan, r=rank, read=reads[-1]: p.lanes_of(r, workers, *read))
            seconds.setdefault(where, []).append((len(reads), listing, first, again))
    print(f"\n{'seconds, medians':34} {'near the start':>15} {'near the end':>15}")
    print(f"{'the plan itself':34} {statistics.median(build):15.4f}")
    for number, name in enumerate(
        ("reads left (how many)", "  all of them", "  what the first one reads", "  the last")
    ):
        row = [statistics.median(found[number] for found in seconds[where]) for where in seconds]
        print(f"{name:34} " + " ".join(f"{value:15,.0f}" if number == 0 else f"{value:15.4f}" for value in row))


def ledger_times(plan: Plan) -> None:
    """How long it takes to say what should have been trained on, and how that grows."""
    print(f"\n{'ledger at':34} {'rows':>15} {'seconds':>10} {'s per 10⁶ rows':>15}")
    for share in (0.001, 0.01, 0.1, 0.99):
        step = int(plan.total_steps * share)
        took, due = timed(lambda s=step: plan.ledger_at(s))
        print(f"{f'{share:.1%} of the run':34} {due.rows:15,} {took:10.3f} {took / due.rows * 1e6:15.5f}")


def sizes(plan: Plan, sample: Plan) -> None:
    """Bytes that travel to the workers, and that a checkpoint keeps."""
    carried = len(pickle.dumps(plan))
    step = plan.total_steps - 1
    position = Position(step=step, workers=1, rows=step * plan.batch_size, digest=(1 << 64) - 1)
    kept = len(position.model_dump_json(include={"step", "rows", "digest"}))
    took, order = timed(lambda: np.random.default_rng(0).permutation(sample.rows))
    print(f"\n{'bytes':34} {'in all':>15} {'per 10⁶ rows':>15}")
    for name, size, rows in (
        ("the plan, pickled", carried, plan.rows),
        ("position in a checkpoint", kept, plan.stream_rows),
        ("the order of all rows, drawn", order.nbytes, sample.rows),
    ):
        shown = f"{size:15,}" if rows != sample.rows else f"{'':15}"
        print(f"{name:34} {shown} {size / rows * 1e6:15,.5g}")
    print(f"{'  and seconds to draw it':34} {'':15} {took / sample.rows * 1e6:15.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=1_000_000, help="row groups of the training split")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    groups = np.random.default_rng(0).integers(800, 1201, arguments.groups)

    def make(number: int = arguments.groups) -> Plan:
        return Plan(
            sizes=groups[:number],
            batch_size=ROWS_A_WORKER * arguments.workers,
            lanes=arguments.workers,
            epochs=arguments.epochs,
            seed=0,
        )

    plan = make()
    print(
        f"{arguments.workers:,} workers, {len(groups):,} row groups, {plan.rows:,} rows, {arguments.epochs} epochs, "
        f"batches of {plan.batch_size:,}: {plan.total_steps:,} steps; {arguments.rounds} rounds"
    )
    resume_times(make, arguments.workers, arguments.rounds)
    sizes(plan, make(-(-arguments.groups // SAMPLE)))
    ledger_times(plan)


if __name__ == "__main__":
    main()
