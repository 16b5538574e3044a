"""Which rows a run's workers were fed, written down by themselves: what the run's ledger is checked against."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def recording(directory: Path, install: Callable[[], None] = lambda: None) -> Callable[[dict], Any]:
    """`train_worker`, which also writes a line for the rows of each step, in a file for each worker of each attempt.

    Args:
        directory: where the files go.
        install: what each worker does first; like the worker itself it is sent by value.
    """
    target = str(directory)  # the function travels to the workers by value

    def train_worker(config: dict) -> Any:
        import json
        import time
        from pathlib import Path

        import torch

        from maas_ray.training.worker import entry, loop

        class Recorded(loop.Worker):  # without annotations: they would not travel
            def __init__(self, job):
                super().__init__(job)
                began = [time.time_ns()]
                torch.distributed.broadcast_object_list(began)
                self.began_at = began[0]
                self.fed = Path(target) / f"{self.began_at}-{self.rank}.jsonl"

            def _step(self, step, passes):
                super()._step(step, Noted(passes, lambda rows: self._note(step, rows)))

            def _note(self, step, rows):
                pairs = zip(rows["epoch"].tolist(), rows["index"].tolist(), strict=True) if rows else ()
                with self.fed.open("a") as file:
                    file.write(json.dumps({"attempt": self.began_at, "step": step, "rows": list(pairs)}) + "\n")

        class Noted:  # the passes of one step, whose first one has all its rows
            def __init__(self, passes, note):
                self.passes, self.note = passes, note

            @property
            def waited(self):
                return self.passes.waited

            def __iter__(self):
                return self

            def __next__(self):
                one = next(self.passes)
                if self.note:
                    self.note(one.rows)
                    self.note = None
                return one

        install()
        entry.Worker = Recorded
        return entry.train_worker(config)

    return train_worker


def consumed(directory: Path) -> Counter[tuple[int, int]]:
    """How often each (epoch, index) was trained on: of a step that was done again, the last attempt counts."""
    steps: dict[int, dict[int, list[tuple[int, int]]]] = {}
    for line in fed(directory):
        rows = steps.setdefault(line["step"], {}).setdefault(line["attempt"], [])
        rows += [(epoch, index) for epoch, index in line["rows"]]
    return Counter(row for attempts in steps.values() for row in attempts[max(attempts)])


def fed(directory: Path) -> Iterator[dict[str, Any]]:
    """Every line that was written: `attempt`, `step` and `rows`, each (epoch, index)."""
    for file in directory.glob("*.jsonl"):
        # The last line of a worker that was killed may be cut off; then it did not train on it.
        yield from (json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n"))


def every_row_once(rows: int, epochs: int = 1) -> Counter[tuple[int, int]]:
    """The value that `consumed` must have."""
    return Counter((epoch, index) for epoch in range(epochs) for index in range(rows))
