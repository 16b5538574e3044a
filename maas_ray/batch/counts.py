"""Counts of answered and quarantined rows, the limit of quarantined ones, and the report at the end."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from maas_ray.batch import writing
from maas_ray.batch.spec import PredictSpec
from maas_ray.errors import DataError
from maas_ray.storage import FileEntry
from maas_ray.terminal.lines import say


class Counts:
    """Counts over all pieces."""

    def __init__(self) -> None:
        self.entries: list[FileEntry] = []
        self.rows = self.quarantined = self.resumed = 0
        self.errors: Counter[str] = Counter()
        self.nulled: Counter[str] = Counter()
        self.seconds = 0.0

    def add(self, entries: Sequence[FileEntry], counts: dict[str, Any]) -> None:
        self.entries += entries
        self.rows += counts["rows"]
        self.quarantined += counts["quarantined"]
        self.errors.update(counts["errors"])
        self.nulled.update(counts["nulled"])

    def check(self, limit: float, total: int, share: float) -> None:
        if self.quarantined > limit:
            raise too_many(self.quarantined, total, share, self.errors)


def too_many(quarantined: int, total: int, share: float, errors: Counter[str]) -> DataError:
    """The error if too many rows cannot be answered."""
    lines = "".join(f"\n  {count:,} × {error}" for error, count in errors.most_common(3))
    return DataError(
        f"{quarantined:,} of {total:,} rows cannot be answered, more than max_quarantined ({share:g}) allows. Answers "
        f"so far are kept, and not repeated by the next run. The commonest errors:{lines}\n"
        "Correct the input, or raise max_quarantined.",
        code="too_many_quarantined",
    )


def report(spec: PredictSpec, counts: Counts, seconds: float) -> None:
    """Print how many rows were answered and quarantined, and why."""
    new = counts.rows + counts.quarantined - counts.resumed
    speed = f", {new / counts.seconds:,.0f} rows/s" if new and counts.seconds else ""
    say(f"{counts.rows:,} rows answered in {seconds:.1f} s{speed}")
    if counts.quarantined:
        reasons = "; ".join(f"{count:,} × {error}" for error, count in counts.errors.most_common(3))
        place = f"{writing.about(spec.output.rstrip('/'))}/{writing.QUARANTINE_DIRECTORY}"
        say(f"  {counts.quarantined:,} could not be answered and are under {place}/: {reasons}")
    for column, count in counts.nulled.most_common():
        say(f"  column {column}: {count:,} values are of another type than in the first rows and became null")
    say(f"  {spec.output}")
