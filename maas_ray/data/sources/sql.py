"""`format: sql`: a table or a query of a database, through SQLAlchemy; streamed, never whole in memory.

Rows of a query have no order. Therefore the digest is the sum of the rows' digests (Bellare and Micciancio 1997, "A New
Paradigm for Collision-Free Hashing: Incrementality at Reduced Cost"), and a row's position is the number in a unique
column, or a hash of its content. Nothing is written: no transaction is committed.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote_plus
from uuid import UUID

from pydantic import ConfigDict, Field, field_validator, model_validator

from maas_ray.data.sources.base import InputFile, Inspected, Raw
from maas_ray.data.sources.table import Table, missing, typed
from maas_ray.errors import DataError, InvalidError, StorageError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_ROWS_AT_ONCE = 1000
_GROUP_BYTES = 4 << 20
_MODULUS = 1 << 256
_SECRETS = re.compile(r"pass|pwd|token|secret|credential|(api|access|private)_?key", re.IGNORECASE)
_ODBC = re.compile(r"\bPWD\s*=\s*\{?([^;}]*)", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]*)(.*)", re.DOTALL)


class SqlSource(Table):
    """`{format: sql, uri: "postgresql+psycopg://reader:${DB_PASSWORD}@db/shop", query: "select body from notes"}`.

    Any database that SQLAlchemy has a dialect for and whose driver is installed.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    format: Literal["sql"] = "sql"
    """Name of the format."""
    uri: str
    """SQLAlchemy URL. `${VAR}` is an environment variable, which each reading process takes from its own environment.
    A password must be such a variable."""
    query: str | None = Field(None, min_length=1)
    """The query whose rows are read. Its columns must have distinct names."""
    table: str | None = Field(None, min_length=1)
    """The table to read instead of a query, as `table` or `schema.table`."""
    partition_column: str | None = None
    """Column of unique whole numbers, such as the primary key. It divides the rows among processes, and its numbers are
    the positions of rows. None: one process reads all rows."""

    @field_validator("uri")
    @classmethod
    def _no_secret(cls, uri: str) -> str:
        userinfo = re.match(r"[^:/]+://[^/?@:]*:([^@]*)@", uri)
        values = [userinfo[1]] if userinfo else []
        values += [value for name, value in re.findall(r"[?&]([\w-]+)=([^&]*)", uri) if _SECRETS.search(name)]
        values += _ODBC.findall(unquote_plus(uri))
        if any(value and not _VARIABLE.fullmatch(value) for value in values):
            raise InvalidError(
                "plain_password",
                "contains a password, and a dataset keeps its spec; set an environment variable and write ${NAME} "
                "instead, as in postgresql+psycopg://reader:${DB_PASSWORD}@host/db.",
            )
        return uri

    @model_validator(mode="after")
    def _one_of(self) -> "SqlSource":
        if (self.query is None) == (self.table is None):
            raise InvalidError("exclusive_fields", "query, table: give one of them, the query or the table to read.")
        return self

    @property
    def location(self) -> str:
        return f"{self.uri}#{self.table or 'query'}"

    def files(self) -> list[InputFile]:
        uri = self.uri
        if (sqlite := _SQLITE.fullmatch(uri)) and sqlite[2] not in ("", ":memory:") and not sqlite[2].startswith("$"):
            uri = f"{sqlite[1]}{os.path.abspath(sqlite[2])}{sqlite[3]}"  # readers have other working directories
        name = self.table or "query"
        return [InputFile(f"{uri}#{name}", name, 0)]

    def stamp(self, file: InputFile) -> str:
        return ""  # a database has no stamp; `records` compares digests instead

    def identity(self) -> dict[str, Any]:
        return {name: value for name, value in super().identity().items() if name not in ("uri", "partition_column")}

    def look(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        stretches: list[_Stretch] = []
        with _connected(inspected.file) as connection:
            names = self._names(connection)
            key = {} if self.partition_column is None else {"partition_column": self.partition_column}
            if problem := missing(inspected.file.uri, mapping | key, names):
                return replace(inspected, problem=problem, columns=tuple(names))
            rows = self._selected(connection, None, None)
            for values in rows:
                content = _content(values)
                number = self._number(values, names)
                if not stretches or (number is not None and stretches[-1].size >= _GROUP_BYTES):
                    stretches.append(_Stretch(number))
                stretches[-1].add(content, number)
        digest = sha256(repr((names, sum(stretch.total for stretch in stretches) % _MODULUS)).encode()).hexdigest()
        counts = tuple(stretch.rows for stretch in stretches)
        return replace(
            inspected,
            # The size decides how the work is cut, and a database does not report it.
            file=replace(inspected.file, size=sum(stretch.size for stretch in stretches)),
            sha256=digest,
            rows=sum(counts),
            groups=counts if self.partition_column else (),
            places=tuple((stretch.first, stretch.total) for stretch in stretches),
        )

    def records(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        places = inspected.places
        chosen = groups if groups is not None and inspected.groups else range(len(places))
        low = places[chosen.start][0] if chosen.start else None
        high = places[chosen.stop][0] if chosen.stop < len(places) else None
        total = 0
        with _connected(inspected.file) as connection:
            names = self._names(connection)
            for values in self._selected(connection, low, high):
                digest = _digest(_content(values))
                total += digest
                number = self._number(values, names)
                position = digest >> 208 if number is None else number
                yield typed(inspected.file.uri, position, dict(zip(names, values, strict=True)), mapping)
        if total % _MODULUS != sum(places[group][1] for group in chosen) % _MODULUS:
            raise DataError(
                f"{inspected.file.uri} changed while it was read; nothing was committed. Run again.",
                code="input_changed",
            )

    def _names(self, connection: "Connection") -> list[str]:
        """The names of the columns, from the query itself, because some databases change the names of a subquery."""
        with connection.exec_driver_sql(self._statement(connection)) as result:
            names = [str(name) for name in result.keys()]  # noqa: SIM118  of a result, not of a mapping
        if twice := sorted({name for name in names if names.count(name) > 1}):
            named = ", ".join(map(repr, twice))
            raise DataError(
                f"{self.location} has {named} more than once; name columns with AS.", code="duplicate_column"
            )
        return names

    def _selected(self, connection: "Connection", low: int | None, high: int | None) -> Iterator[tuple[Any, ...]]:
        """The rows; with a partition column, those from `low` up to `high`, in its order."""
        statement = self._statement(connection)
        if self.partition_column is not None:
            column = _quoted(connection, self.partition_column)
            bounds = [f"{column} >= {low:d}"] if low is not None else []
            bounds += [f"{column} < {high:d}"] if high is not None else []
            where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
            statement = f"SELECT * FROM (\n{statement}\n) AS maas_rows{where} ORDER BY {column}"  # noqa: S608
        return (tuple(map(_plain, row)) for row in connection.exec_driver_sql(statement))

    def _statement(self, connection: "Connection") -> str:
        if self.table is not None:
            parts = (_quoted(connection, part) for part in self.table.split("."))
            return f"SELECT * FROM {'.'.join(parts)}"  # noqa: S608
        return str(self.query).strip().rstrip(";")

    def _number(self, values: tuple[Any, ...], names: list[str]) -> int | None:
        if self.partition_column is None:
            return None
        value = values[names.index(self.partition_column)]
        if isinstance(value, Decimal) and value == value.to_integral_value():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(
                f"partition_column: {self.partition_column} holds {value!r}; use a column of whole numbers.",
                code="not_an_integer",
            )
        return value


@dataclass
class _Stretch:
    """Rows that are read together: the number of the first, their count, their bytes, and the sum of their digests."""

    first: int | None
    last: int | None = None
    rows: int = 0
    size: int = 0
    total: int = 0

    def add(self, content: bytes, number: int | None) -> None:
        if number is not None and number == self.last:
            raise DataError(
                f"partition_column: {number} occurs twice; use a column of unique numbers.", code="not_unique"
            )
        self.last = number
        self.rows, self.size = self.rows + 1, self.size + len(content)
        self.total = (self.total + _digest(content)) % _MODULUS


def _quoted(connection: "Connection", name: str) -> str:
    return str(connection.dialect.identifier_preparer.quote(name))


def _plain(value: Any) -> Any:
    """A value as Parquet would give it, independent of the database and its session."""
    if isinstance(value, (memoryview, bytearray)):
        return bytes(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    return value


def _content(values: tuple[Any, ...]) -> bytes:
    return repr(values).encode(errors="surrogatepass")


def _digest(content: bytes) -> int:
    return int.from_bytes(sha256(content).digest(), "big")


@contextmanager
def _connected(file: InputFile) -> Iterator["Connection"]:
    """A connection that streams results, and raises errors of this platform that contain no secrets."""
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    where = file.uri
    uri, values = _expanded(where.removesuffix(f"#{file.relative}"))
    try:
        url = sqlalchemy.make_url(uri)
        values.append((url.password or "", "***"))
        if url.get_backend_name() == "sqlite" and url.database and not os.path.exists(url.database):
            # SQLite would create an empty database.
            raise StorageError(f"{where}: the database does not exist.", code="database_missing")
        engine = sqlalchemy.create_engine(url, poolclass=NullPool, hide_parameters=True)
        options = {"stream_results": True, "max_row_buffer": _ROWS_AT_ONCE, "no_parameters": True}
        with engine.connect() as connection:
            yield connection.execution_options(**options)
    except ImportError as error:
        fix = "pip install 'maas-ray[postgres]'" if "psycopg" in str(error) else "install the driver"
        raise StorageError(f"{where}: {error}; {fix}.", code="driver_missing") from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        text = " ".join(str(getattr(error, "orig", None) or error).split())
        for value, name in values:
            text = text.replace(value, name) if value else text
        raise StorageError(f"{where}: {text}", code="database_failed") from None  # the cause may contain the secret


def _expanded(uri: str) -> tuple[str, list[tuple[str, str]]]:
    """A URL with its variables expanded, and each value with the name of its variable."""
    values: list[tuple[str, str]] = []
    start, end = uri.find("://"), uri.find("@")

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise DataError(
                f"{uri}: the variable {match[1]} is not set in the process that reads. Set it before `maas up`, or on "
                "every node, or in the job's `runtime_env`.",
                code="variable_missing",
            )
        plain = os.environ[match[1]]
        # In `user:password@`, special characters belong to the value. A variable may also be the whole URL.
        quoted = quote(plain, safe="") if 0 <= start < match.start() < end else plain
        values.extend([(plain, match[0]), (quoted, match[0])])
        return quoted

    return _VARIABLE.sub(value, uri), values
