"""The decision of `prepare`: reuse a dataset, grow the current one, or build from all files.

    list and inspect the input ─▶ fingerprint ─▶ committed before?            reuse it
                                              ├▶ old files unchanged?         grow it by the new files
                                              └▶ otherwise                    build from all files

Nothing is written. Files are inspected by whichever function the caller gives: on the cluster, or in this process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maas_ray import storage
from maas_ray.data import damage
from maas_ray.data.dataset import KIND, PreparedDataset, read_pointer
from maas_ray.data.pipeline.growth import Parent, growth_fingerprint, recipe_of, refusal
from maas_ray.data.pipeline.read_rows import reading_of
from maas_ray.data.reading import Inspected, lacking_columns
from maas_ray.data.sources import InputFile, list_files
from maas_ray.data.spec import PrepareSpec
from maas_ray.errors import CorruptError, DataError, MaasError, NotFoundError, Problem, SpecError
from maas_ray.spec import digest_of

PIPELINE = 4
"""Version of the pipeline, part of every fingerprint. It is raised when the same input would give another dataset."""
_MAX_PROBLEMS = 5

Inspect = Callable[[list[list[InputFile]], Mapping[tuple[int, str], Inspected] | None], list[list[Inspected]]]
"""Inspects the files of each source. Files with an earlier inspection and an unchanged stamp need not be read."""


@dataclass(frozen=True)
class Plan:
    """The decision for a spec and its input.

    Args:
        uri: the dataset.
        fingerprint: of the dataset.
        input: fingerprint of the spec and all files, whether the dataset grows or not.
        recipe: see `growth.recipe_of`.
        files: the files to read, by source.
        reused: the committed dataset that this spec and input gave before. None: there is none.
        parent: the dataset that grows. None: all files are read.
        reason: why the current dataset of this name cannot grow. Empty: it can, or there is none.
    """

    uri: str
    fingerprint: str
    input: str
    recipe: dict[str, Any]
    files: list[list[Inspected]]
    reused: PreparedDataset | None = None
    parent: Parent | None = None
    reason: str = ""


def plan_for(
    spec: PrepareSpec, files: list[list[InputFile]], home: str, inspect: Inspect, *, fresh: bool = False
) -> Plan:
    """Decide whether to reuse, grow or build.

    Args:
        spec: the prepare spec.
        files: the files of each source, see `list_sources`.
        home: directory of the datasets of this name.
        inspect: inspects files.
        fresh: whether to build from all files even if the dataset could grow.

    Raises:
        DataError: a file cannot be used, or there are no rows.
        CorruptError: the dataset was committed before, and is damaged.
    """
    recipe = recipe_of(spec, _identity(spec), PIPELINE)
    parent, reason = (None, "") if fresh else _current(spec, recipe, home)
    inspected = _inspected(spec, files, inspect, parent.before(spec) if parent is not None else None)
    whole = digest_of({**recipe, "sources": _sources(spec, inspected)})
    if parent is not None and parent.dataset.meta.input == whole:
        return Plan(parent.dataset.uri, parent.dataset.fingerprint, whole, recipe, [], reused=parent.dataset)
    new, fingerprint = inspected, whole
    if parent is not None:
        difference = parent.compare(inspected)
        if reason := difference.reason:
            # The earlier inspections say too little to read the files from.
            parent, new = None, _inspected(spec, files, inspect)
        else:
            new = difference.new
            fingerprint = growth_fingerprint(recipe, _sources(spec, new), parent.dataset.fingerprint)
    uri = storage.join(home, fingerprint[:16])
    if reused := _committed(uri):
        return Plan(uri, fingerprint, whole, recipe, [], reused=reused)
    if parent is None and not any(file.rows for source in new for file in source):
        raise DataError("the sources hold no rows; there is nothing to prepare.", code="no_rows")
    damage.check([file for source in new for file in source], spec.max_quarantined)
    return Plan(uri, fingerprint, whole, recipe, new, parent=parent, reason=reason)


def list_sources(spec: PrepareSpec) -> list[list[InputFile]]:
    """The files of every source.

    Raises:
        DataError: sources that name no file, all at once, each with its field and line.
    """
    files, problems, codes = [], [], []
    for index, source in enumerate(spec.sources):
        try:
            files.append(list_files(source))
        except MaasError as error:
            problems.append(f"{spec.where(f'sources[{index}]')}: {error}")
            codes.append(error.code)
    if problems:
        raise DataError("\n".join(problems), code=codes[0])
    return files


def _inspected(
    spec: PrepareSpec,
    files: list[list[InputFile]],
    inspect: Inspect,
    before: Mapping[tuple[int, str], Inspected] | None = None,
) -> list[list[Inspected]]:
    """The inspected files, all of which can be used.

    Raises:
        DataError: some cannot; names the first few.
    """
    inspected = [damage.weighed(source) for source in inspect(files, before)]
    unusable = [
        _placed(spec, number, file.problem, [file])
        for number, source in enumerate(inspected)
        for file in source
        if file.problem
    ]
    columns = reading_of(spec).names
    unusable += [
        _placed(spec, number, problem, listed)
        for number, (source, listed) in enumerate(zip(spec.sources, inspected, strict=True))
        if not unusable and (problem := lacking_columns(source, listed, columns))
    ]
    if unusable:
        more = f"\n… and {len(unusable) - _MAX_PROBLEMS:,} more." if len(unusable) > _MAX_PROBLEMS else ""
        raise DataError("\n".join(unusable[:_MAX_PROBLEMS]) + more, code=unusable[0].code)
    return inspected


def _placed(spec: PrepareSpec, number: int, problem: str, files: list[Inspected]) -> Problem:
    """A problem of the files of a source, with its line in the spec and the task's advice."""
    code = Problem(problem).code
    advice = spec.task.advice({column for file in files for column in file.columns}) if code == "column_missing" else ""
    return Problem(f"{spec.where(f'sources[{number}]')}: {problem} {advice}".rstrip(), code)


def _identity(spec: PrepareSpec) -> dict[str, Any]:
    """The identity of the task, with the digest of the user's own code."""
    identity = spec.task.identity()
    return identity if spec.task.own_source is None else identity | {"source": spec.task.own_source.digest}


def _current(spec: PrepareSpec, recipe: dict[str, Any], home: str) -> tuple[Parent | None, str]:
    """The current dataset of the name if it can grow by this spec; else the reason why not."""
    try:
        fingerprint = read_pointer(home)
        dataset = PreparedDataset(storage.open_artifact(storage.join(home, fingerprint[:16]), KIND))
    except NotFoundError:
        return None, ""
    except (CorruptError, SpecError) as error:
        return None, f"the current one cannot be used: {error}"
    reason = refusal(spec, recipe, dataset)
    return (None, reason) if reason else (Parent(dataset), "")


def _sources(spec: PrepareSpec, inspected: list[list[Inspected]]) -> list[dict[str, Any]]:
    """Everything that decides the content of the sources."""
    return [
        source.identity() | {"files": sorted([file.file.relative, file.sha256] for file in files)}
        for source, files in zip(spec.sources, inspected, strict=True)
    ]


def _committed(uri: str) -> PreparedDataset | None:
    try:
        return PreparedDataset(storage.open_artifact(uri, KIND))
    except NotFoundError:
        return None
    except CorruptError as error:
        raise CorruptError(f"{error} To prepare the dataset again, remove {uri}.", code=error.code) from error
