"""The fields under `splits:`."""

from pydantic import Field, model_validator

from maas_ray.errors import InvalidError
from maas_ray.spec import Spec


class Splits(Spec):
    """Shares of the rows that are held out, and how rows are assigned. All other rows are for training."""

    validation: float = Field(0.05, ge=0, lt=1)
    """Share of the rows, in [0, 1). 0: no such split."""
    test: float = Field(0.05, ge=0, lt=1)
    """Share of the rows, in [0, 1). 0: no such split."""
    group: str | None = None
    """Column of the sources. Rows with the same value fall into the same split. None: rows are assigned one by one."""
    stratify: str | None = None
    """Column of the sources that holds labels. The same share of each label is held out. None: shares hold overall."""
    column: str | None = None
    """Column of the sources that names each row's split: `train`, `validation` or `test`. None: shares decide."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> "Splits":
        if self.validation + self.test >= 1:
            raise InvalidError(
                "nothing_to_train_on",
                f"validation ({self.validation}) and test ({self.test}) leave no rows to train on; "
                "make their sum smaller than 1.",
            )
        if len(self.reads) > 1:
            given = [name for name in ("group", "stratify", "column") if getattr(self, name) is not None]
            raise InvalidError("exclusive_fields", f"{' and '.join(given)} exclude each other; give only one of them.")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of validation and test."""
        return self.validation, self.test

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the sources that are needed to assign rows."""
        return tuple(name for name in (self.group, self.stratify, self.column) if name is not None)
