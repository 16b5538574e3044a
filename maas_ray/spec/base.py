"""The base of every spec: one YAML document, parsed strictly, with errors a person can act on."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, StringConstraints, ValidationError

from maas_ray.errors import DataError, NotFoundError, Problem, SpecError
from maas_ray.spec.document import line_of, lines_after, override, read, shown
from maas_ray.spec.problems import placed, problems_of

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A name that is safe in a path, a URL and a registry: letters, digits, `.`, `_` and `-`."""


@dataclass(frozen=True)
class _Origin:
    """The file and the lines a spec was read from. All origins are equal, so that equal specs are equal."""

    source: str = field(default="", compare=False)
    lines: dict[tuple[Any, ...], int] = field(default_factory=dict, compare=False)


class Spec(BaseModel):
    """Base of all specs. Subclasses document every field in one line: meaning, unit, sentinel."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """The JSON schema, in which each field is described by its docstring."""
        from maas_ray.spec.meanings import WithMeanings

        return super().model_json_schema(*args, **{"schema_generator": WithMeanings, **options})

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a spec from a YAML file.

        Args:
            path: the file. Relative paths inside the spec are taken from the working directory.
            overrides: `a.b=c` assignments that override the file; `c` is parsed as YAML.

        Raises:
            SpecError: the file is wrong; names every problem in it.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise SpecError(
                str(path), [f"cannot be read: {error.strerror}. Check the path."], code="unreadable"
            ) from error
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 text (byte {error.start}); save it as UTF-8."
            raise SpecError(str(path), [problem], code="not_utf8") from error
        return cls.from_text(text, source=str(path), overrides=overrides)

    @classmethod
    def from_text(cls, text: str, *, source: str, overrides: Iterable[str] = ()) -> Self:
        """Parse YAML text. Errors name `source` in place of a file."""
        overrides = tuple(overrides)
        data, lines = read(text, source)
        if not isinstance(data, dict):
            problem = f"holds {shown(data)} at the top; write `field: value` lines."
            raise SpecError(source, [problem], code="not_a_mapping")
        data, problems = override(data, overrides)
        if problems:
            raise SpecError(source, problems)
        return cls._parse(data, source, lines_after(lines, overrides))

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, source: str | None = None) -> Self:
        """Build a spec from plain values, with the same errors as a file."""
        return cls._parse(dict(data), source or cls.__name__, {})

    @classmethod
    def _parse(cls, data: dict[str, Any], source: str, lines: dict[tuple[Any, ...], int]) -> Self:
        try:
            spec = cls.model_validate(data)
        except ValidationError:
            raise SpecError(source, problems_of(cls, data, lines)) from None
        spec._origin = _Origin(source, lines)
        return spec

    def document(self) -> dict[str, Any]:
        """The spec as plain JSON values, including defaults."""
        return self.model_dump(mode="json")

    def where(self, field: str) -> str:
        """The place of a field such as `sources[0].path`: `prepare.yaml, line 4: sources[0].path`."""
        line = self._line(field)
        return self._source + (f", line {line}: " if line else ": ") + field

    def refuse(self, field: str, *problems: str, code: str | None = None) -> SpecError:
        """The error for a field, as parsing would report it, for problems that only show after parsing.

        Args:
            field: the field, such as `sources[0].path`.
            problems: one line for each problem.
            code: the code of problems that are plain strings.
        """
        line = self._line(field)
        problems = tuple(Problem(problem, getattr(problem, "code", code)) for problem in problems)
        return SpecError(self._source, [placed(problem, field, line) for problem in problems])

    @contextmanager
    def at(self, field: str) -> Iterator[None]:
        """Prefix errors about the dataset, version or file that a field names with the place of the field."""
        try:
            yield
        except SpecError as error:
            raise self.refuse(field, *error.problems) from error
        except (NotFoundError, DataError) as error:
            raise type(error)(f"{self.where(field)}: {error}", code=error.code) from error

    @property
    def _source(self) -> str:
        return self._origin.source or type(self).__name__

    def _line(self, field: str) -> int | None:
        path = tuple(int(key) if key.isdigit() else key for key in re.findall(r"[^.\[\]]+", field))
        return line_of(path, self._origin.lines)


def digest_of(document: Any) -> str:
    """The sha256, in hex, of a JSON document in canonical form."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(canonical.encode()).hexdigest()
