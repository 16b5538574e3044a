"""The plan: the rows that each worker trains on at each step. It is a pure function of a few numbers, without Ray.

The rows of all epochs are one stream: in each epoch the row groups in a seeded order, the rows of each in a
seeded order. The stream is cut into batches of `batch_size` rows, so which rows a step trains on does not
depend on the number of workers, and a position in a run is one number, the optimizer steps taken. From there any
number of workers continues with the remaining rows: none is repeated, none is left out.

    stream    epoch 0 ────────────────┊── epoch 1 ──────────────┊──…      ┊ the end of an epoch
    chunks    │ lane 0 │ lane 1 │ … ││ lane 0 │ lane 1 │ …  ││…  tail     ║ the last whole batch before it
    a step       ▪        ▪              (a batch takes `width` rows of every lane)

So that a worker reads whole row groups instead of a piece of each, a chunk (the whole batches up to an
epoch's end) is laid out in `lanes`: a batch takes the same number of rows from each. Lanes are fixed for a
run, and workers divide them. If fewer rows than a batch are left when the stream ends, they are one short step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from maas_ray.errors import DataError

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Slice:
    """Positions [low, high) of a row group in its shuffled order of an epoch."""

    epoch: int
    group: int
    low: int
    high: int


@dataclass(frozen=True)
class Lane:
    """Part of a read: a lane's rows of every step, end to end, and the worker's share of each step.

    Args:
        slices: the rows, in order.
        width: rows of the lane in a step.
        low, high: the worker's own rows in each step, [low, high).
    """

    slices: tuple[Slice, ...]
    width: int
    low: int
    high: int


@dataclass(frozen=True)
class Ledger:
    """The rows that have been trained on, a multiset of (epoch, index) kept as two numbers.

    The sum of a 64-bit hash of every row is a hash of the multiset (Clarke et al. 2003, "Incremental Multiset Hash
    Functions", MSet-Add-Hash): ledgers of workers add up in any order, and a ledger that repeats or omits a row
    differs from the plan's.

    Args:
        rows: number of rows.
        digest: the sum, modulo 2⁶⁴.
    """

    rows: int = 0
    digest: int = 0

    def __add__(self, other: "Ledger") -> "Ledger":
        return Ledger(self.rows + other.rows, (self.digest + other.digest) & _MASK)

    @classmethod
    def of(cls, epochs: "np.ndarray | int", indices: np.ndarray) -> "Ledger":
        """The ledger of some rows: `indices` int64 [n] in a split, with their epochs ([n], or one for all)."""
        with np.errstate(over="ignore"):
            # SplitMix64's finaliser (Steele, Lea and Flood 2014) over the index, moved apart by epoch.
            mixed = indices.astype(np.uint64) + (np.asarray(epochs).astype(np.uint64) + np.uint64(1)) * np.uint64(
                _GOLDEN
            )
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            digest = int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))
        return cls(len(indices), digest)


def default_lanes(batch_size: int, workers: int) -> int:
    """Lanes of a new run: the largest number up to `workers` that divides the batch."""
    return next(lanes for lanes in range(min(workers, batch_size), 0, -1) if batch_size % lanes == 0)


@dataclass(frozen=True, eq=False)
class Plan:
    """The division of a training split into steps and workers.

    Args:
        sizes: rows of each row group of the split, int64 [groups], in index order.
        batch_size: rows in one optimizer step, over all workers.
        lanes: positions of the stream that a batch is taken from; divides `batch_size`. One for each worker is best,
            but any number of workers can share them.
        epochs: passes over the split.
        seed: seeds the order.
        max_steps: limit of optimizer steps; None: no limit.
    """

    sizes: np.ndarray
    batch_size: int
    lanes: int
    epochs: int
    seed: int
    max_steps: int | None = None
    rows: int = field(init=False, repr=False)
    """Rows in the split."""
    _starts: np.ndarray = field(init=False, repr=False)
    _orders: dict[int, tuple[np.ndarray, np.ndarray]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", int(np.sum(self.sizes)))  # computed once, because every method reads it
        if not self.rows:
            raise DataError("the training split has no rows; prepare more data.", code="split_empty")
        if self.batch_size % self.lanes:
            raise ValueError(f"{self.lanes} lanes do not divide a batch of {self.batch_size}")
        object.__setattr__(self, "_starts", np.concatenate([[0], np.cumsum(self.sizes)[:-1]]))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_orders": {}}  # computed again when it is needed

    @property
    def stream_rows(self) -> int:
        """Rows of all epochs."""
        return self.rows * self.epochs

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run, including the short last one."""
        steps = -(-self.stream_rows // self.batch_size)
        return min(steps, self.max_steps) if self.max_steps else steps

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in an epoch; rarely a whole number."""
        return self.rows / self.batch_size

    def rows_in(self, step: int) -> int:
        """Rows that optimizer step `step`, counted from 0, trains on."""
        return min(self.batch_size, self.stream_rows - step * self.batch_size)

    def share(self, step: int, rank: int, workers: int) -> tuple[int, int]:
        """A worker's rows of a step's batch, [low, high). Shares differ by at most one row."""
        rows = self.rows_in(step)
        return rows * rank // workers, rows * (rank + 1) // workers

    # --- reading

    def reads(self, rank: int, workers: int, start: int, read_rows: int) -> list[tuple[int, int]]:
        """The optimizer steps [first, last) of each of a worker's reads, in order, from step `start` to the end.

        If a worker has no rows in the short last step, it has no read for it.

        A read takes about `read_rows` rows. It takes more if that would be less than a row group of each of the
        worker's lanes.
        """
        low, high = self.share(0, rank, workers)
        lanes = -(-max(1, high - low) // self._width)
        max_rows = max(read_rows, lanes * int(self.sizes.max()))
        steps = max(1, max_rows // max(1, high - low))
        bounds: list[int] = [start]
        while bounds[-1] < self.total_steps:
            bounds.append(min(bounds[-1] + steps, self._chunk_end(bounds[-1]), self.total_steps))
        reads = list(pairwise(bounds))
        low, high = self.share(self.total_steps - 1, rank, workers)
        return reads[:-1] if reads and low == high else reads

    def lanes_of(self, rank: int, workers: int, first: int, last: int) -> list[Lane]:
        """The lanes that a worker reads for the steps [first, last), which must be in one chunk."""
        low, high = self.share(first, rank, workers)
        if self.rows_in(first) < self.batch_size:  # the tail
            start = first * self.batch_size
            return [Lane(tuple(self._slices(start + low, start + high)), high - low, 0, high - low)] * (low < high)
        begin, width = self._chunk_begin(first), self._width
        segment = (self._chunk_end(first) - begin) * width
        lanes = []
        for number in range(low // width, -(-high // width)):
            start = begin * self.batch_size + number * segment
            slices = self._slices(start + (first - begin) * width, start + (last - begin) * width)
            own = max(low - number * width, 0), min(high - number * width, width)
            lanes.append(Lane(tuple(slices), width, *own))
        return lanes

    def rows_of(self, piece: Slice) -> np.ndarray:
        """Positions in the row group, int64, of a slice's rows, in the order of training."""
        seed = [self.seed, piece.epoch, int(self._starts[piece.group])]
        order = np.random.default_rng(seed).permutation(int(self.sizes[piece.group]))
        return order[piece.low : piece.high]

    def indices_of(self, piece: Slice) -> np.ndarray:
        """Indices in the split, int64, of a slice's rows."""
        return int(self._starts[piece.group]) + self.rows_of(piece)

    # --- accounting

    def ledger_at(self, step: int) -> Ledger:
        """The ledger of the first `step` steps, whichever workers took them."""
        if step * self.batch_size >= self.stream_rows:
            return self._ledger_of_epochs(self.epochs)
        begin, segment = self._chunk_begin(step), (self._chunk_end(step) - self._chunk_begin(step)) * self._width
        epochs, rest = divmod(begin * self.batch_size, self.rows)
        pieces = list(self._slices(epochs * self.rows, epochs * self.rows + rest))
        for lane in range(self.lanes):
            start = begin * self.batch_size + lane * segment
            pieces += self._slices(start, start + (step - begin) * self._width)
        return sum(map(self._ledger_of_slice, pieces), self._ledger_of_epochs(epochs))

    def _ledger_of_slice(self, piece: Slice) -> Ledger:
        size, start = int(self.sizes[piece.group]), int(self._starts[piece.group])
        if piece.high - piece.low == size:  # the order of a whole row group does not matter
            return Ledger.of(piece.epoch, np.arange(start, start + size))
        return Ledger.of(piece.epoch, self.indices_of(piece))

    def _ledger_of_epochs(self, epochs: int) -> Ledger:
        return sum(
            (
                Ledger.of(epoch, np.arange(start, min(start + _BLOCK, self.rows)))
                for epoch in range(epochs)
                for start in range(0, self.rows, _BLOCK)
            ),
            Ledger(),
        )

    # --- the stream

    @property
    def _width(self) -> int:
        return self.batch_size // self.lanes

    def _chunk_begin(self, step: int) -> int:
        """The first step of a step's chunk."""
        epoch = -(-(step + 1) * self.batch_size // self.rows) - 1
        return min(epoch * self.rows // self.batch_size, self.stream_rows // self.batch_size)

    def _chunk_end(self, step: int) -> int:
        """The step after the last one of a step's chunk. The tail is a chunk of its own."""
        whole = self.stream_rows // self.batch_size
        if step >= whole:
            return step + 1
        epoch = -(-(step + 1) * self.batch_size // self.rows) - 1
        return min((epoch + 1) * self.rows // self.batch_size, whole)

    def _slices(self, low: int, high: int) -> Iterator[Slice]:
        """The slices of the rows [low, high) of the stream."""
        while low < high:
            epoch, position = divmod(low, self.rows)
            stop = min(high - epoch * self.rows, self.rows)
            order, ends = self._order(epoch)
            number = int(np.searchsorted(ends, position, side="right"))
            while position < stop:
                group, end = int(order[number]), int(ends[number])
                begin = end - int(self.sizes[group])
                if end > position:
                    yield Slice(epoch, group, position - begin, min(stop, end) - begin)
                position, number = min(stop, max(end, position)), number + 1
            low = epoch * self.rows + stop

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's row groups in order, and the position at which each ends."""
        if epoch not in self._orders:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.sizes))
            while len(self._orders) > 1:  # a chunk may span two epochs
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = order, np.cumsum(self.sizes[order])
        return self._orders[epoch]
