"""The `meta` document of a dataset's manifest: its spec, its shards, and the counts of its rows."""

from typing import Any

from maas_ray.spec import Spec


class Shard(Spec):
    """One Parquet file of a split."""

    path: str
    """Path inside the dataset."""
    start: int
    """Index of the first row."""
    row_groups: tuple[int, ...]
    """Rows in each row group."""

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


class Split(Spec):
    """The shards of one split."""

    shards: tuple[Shard, ...] = ()
    """In the order of their rows' indices."""

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


class StoredColumn(Spec):
    """A stored column: a scalar, or the bytes of an array in C order, little-endian."""

    dtype: str
    """Numpy dtype name."""
    shape: tuple[int, ...] = ()
    """Shape of one row's value."""


class Counts(Spec):
    """The outcome of every row that was read: dropped, duplicate, quarantined or kept."""

    read: int
    """Rows, documents or images read from the sources."""
    dropped: dict[str, int]
    """Dropped rows by reason, such as `empty`."""
    duplicates: int
    """Rows dropped as exact duplicates of a row that was kept."""
    near_duplicates: int = 0
    """Rows dropped as near-duplicates of a row that was kept."""
    quarantined: int
    """Rows that could not be parsed. They are stored under `quarantine/` with their errors."""
    kept: dict[str, int]
    """Rows kept, by split."""
    cleaned: dict[str, int] = {}
    """Changes that cleaning made, by a short description of each kind."""
    copies: int = 0
    """Copies of rows that are stored because of the weight of their source."""
    packed_units: dict[str, int] = {}
    """For packed tasks: elements (tokens) in each split's rows."""
    packed_dropped: dict[str, int] = {}
    """For packed tasks: elements of each split's last, partial sequence, which are dropped."""

    def adds_up(self) -> bool:
        """True if every row that was read is accounted for."""
        out = sum(self.dropped.values()) + self.duplicates + self.near_duplicates + self.quarantined
        return self.read == out + sum(self.kept.values())

    def plus(self, other: "Counts") -> "Counts":
        """The sum of both counts."""
        sums: dict[str, Any] = {}
        for name in Counts.model_fields:
            one, more = getattr(self, name), getattr(other, name)
            sums[name] = (
                {key: one.get(key, 0) + more.get(key, 0) for key in sorted({*one, *more})}
                if (isinstance(one, dict))
                else one + more
            )
        return Counts(**sums)


class DatasetMeta(Spec):
    """`meta` in a dataset's manifest."""

    name: str
    """Name under which it was prepared."""
    fingerprint: str
    """Sha256 of the resolved spec and the content of every input file. For a dataset that has grown, sha256 of the
    parent's fingerprint and the content of the new files."""
    spec: dict[str, Any]
    """The resolved prepare spec, as a plain document."""
    columns: dict[str, StoredColumn]
    """Stored columns beside `index`."""
    splits: dict[str, Split]
    """Shards by split."""
    counts: Counts
    """The outcome of every row that was read."""
    kept: tuple[str, ...] = ()
    """Columns of the sources that were kept, see `maas_ray.data.kept_columns`."""
    cleaning: tuple[dict[str, Any], ...] = ()
    """The cleaning steps with their statistics, see `maas_ray.data.cleaning.saved`."""
    parent: str | None = None
    """Fingerprint of the dataset that this one has grown from. None: it was prepared from all its files at once."""
    grown: Counts | None = None
    """Counts of the rows that were added to the parent's."""
    recipe: str = ""
    """Sha256 of everything that decides the content except the files. Empty: the dataset cannot grow."""
    pipeline: int = 3
    """Version of the pipeline that prepared it, see `maas_ray.data.plan`. maas_ray 0.2 did not write it."""
    input: str = ""
    """Sha256 of the spec and the content of every input file, whether the dataset has grown or not."""
    parts: int = 0
    """Parts that the input files were cut into. Parts of files that are added later are numbered after them."""
