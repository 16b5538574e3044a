"""The spec of `maas prepare`."""

from pydantic import Field, model_validator

from maas_ray.data.cleaning import AnyStep, CleaningStep
from maas_ray.data.dedup.decontaminate import Decontaminate
from maas_ray.data.dedup.spec import Deduplicate
from maas_ray.data.names import FILE_COLUMNS
from maas_ray.data.sources import AnySource, formats_for
from maas_ray.data.splits.spec import Splits
from maas_ray.errors import InvalidError
from maas_ray.spec import Name, Spec
from maas_ray.tasks import AnyTaskSpec, Task, find_task
from maas_ray.tasks.rows import REST
from maas_ray.tasks.tables.spec import TableSpec


class PrepareSpec(Spec):
    """The input of `maas prepare`."""

    dataset: Name
    """Name of the dataset."""
    task: AnyTaskSpec
    """The task that models of this dataset learn."""
    sources: tuple[AnySource, ...]
    """The raw data: files, directories or databases."""
    keep: tuple[str, ...] = ()
    """Columns of the sources to keep beside the task's own, so that `evaluate` can group rows by them. 64 bytes of each
    value are kept. Not for tasks that join rows to sequences."""
    clean: tuple[AnyStep, ...] = ()
    """Cleaning steps, run in this order before the task sees a row."""
    deduplicate: Deduplicate = Deduplicate()
    """Which rows are dropped because they duplicate another row."""
    decontaminate: Decontaminate | None = None
    """Which training rows are dropped because they share text with rows to evaluate with. None: no row."""
    splits: Splits = Splits()
    """Shares of the rows that are held out, and how rows are assigned to splits."""
    seed: int = Field(0, ge=0)
    """Seed of the global shuffle."""
    max_quarantined: float = Field(0.2, ge=0, le=1)
    """Share of rows that may be unreadable, in [0, 1]. Preparing stops above it."""

    @model_validator(mode="after")
    def _sources_have_the_columns(self) -> "PrepareSpec":
        if not self.sources:
            raise InvalidError("sources_empty", "sources: is empty; add one, such as {format: text, path: docs}.")
        self._check_keep()
        needed = {"keep": self.keep, "splits": self.splits.reads}
        needed |= {f"clean[{index}]": step.reads for index, step in enumerate(self.clean)}
        for index, source in enumerate(self.sources):
            if source.gives is None:
                continue
            for field, names in needed.items():
                if unknown := [name for name in names if name not in source.gives]:
                    raise InvalidError(
                        "column_missing",
                        f"{field}: sources[{index}] is {source.format}, which has no column {unknown[0]!r}.",
                    )
            if not set(self.task.columns) <= set(source.gives):
                *fits, last = formats_for(self.task.columns)
                raise InvalidError(
                    "unsuitable_format",
                    f"sources[{index}].format: {source.format} does not have {' and '.join(self.task.columns)}, which "
                    f"{self.task.type} needs; use {', '.join(fits)} or {last}.",
                )
        return self

    def _check_keep(self) -> None:
        task = find_task(self.task.type)
        joins_rows = self.task.steps is not None or (task is not None and task.packing is not Task.packing)
        if self.keep and joins_rows:
            raise InvalidError(
                "keep_unsupported",
                f"keep: {self.task.type} joins rows to sequences, which have no single value of a column; remove it.",
            )
        for name in self.keep:
            if name in FILE_COLUMNS:
                raise InvalidError(
                    "keep_unsupported",
                    f"keep: {name!r} holds files, which are not kept; list columns of texts or numbers.",
                )

    @model_validator(mode="after")
    def _text_can_be_compared(self) -> "PrepareSpec":
        compared = {"deduplicate.near": self.deduplicate.near, "decontaminate": self.decontaminate}
        for field, value in compared.items():
            if value is not None and (self.task.steps is not None or {REST, *FILE_COLUMNS} & {*self.task.inputs}):
                raise InvalidError("no_text", f"{field}: {self.task.type} has no text to compare; remove it.")
        if self.deduplicate.near is not None and not self.drops_duplicates:
            raise InvalidError(
                "near_without_exact",
                "deduplicate: near-duplicates cannot be dropped while exact duplicates stay; remove `exact: false`.",
            )
        if self.task.steps is not None and self.splits.reads:
            raise InvalidError(
                "splits_unsupported",
                f"splits.{self._assigned_by}: {self.task.type} holds out the end of each series; remove it.",
            )
        return self

    @property
    def _assigned_by(self) -> str:
        return next(name for name in ("group", "stratify", "column") if getattr(self.splits, name) is not None)

    @property
    def has_given_splits(self) -> bool:
        """True if a column or a source names the split of rows."""
        return self.splits.column is not None or any(source.split is not None for source in self.sources)

    @property
    def drops_duplicates(self) -> bool:
        """True if only one of several rows with the same content is kept."""
        if self.deduplicate.exact is not None:
            return self.deduplicate.exact
        return self.task.steps is None and REST not in self.task.columns and not isinstance(self.task, TableSpec)

    @property
    def may_straddle(self) -> bool:
        """True if rows of the same content are compared, and may be assigned to different splits."""
        return self.drops_duplicates and (self.has_given_splits or self.splits.group is not None)

    @property
    def early_steps(self) -> tuple[CleaningStep, ...]:
        """The cleaning steps before the first fitted step. They run while rows are read."""
        return self.clean[: len(self.clean) - len(self.late_steps)]

    @property
    def late_steps(self) -> tuple[CleaningStep, ...]:
        """The cleaning steps from the first fitted step on. They run when splits are known."""
        first = next((index for index, step in enumerate(self.clean) if step.fits), len(self.clean))
        return self.clean[first:]
