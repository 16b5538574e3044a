"""`predict`: a version's answers to the rows of files, each row once, through crashes.

    list and inspect the input ─▶ pieces ─▶ unanswered pieces ─▶ Ray Data: actors that hold the model ─▶ manifest

    OUTPUT/part-<digest>.parquet      a piece's answers, written whole; named by the piece's content
    OUTPUT.prediction/
      prediction.json                 identity of the prediction; the output refuses any other
      quarantine/part-….parquet       rows that could not be answered, with path, position, error, excerpt
      manifest.json                   every file with its sha256, written last: the prediction is complete

A piece whose file exists is not answered again, whether this process, an actor or a machine was killed.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from maas_ray import storage
from maas_ray.batch import plan, writing
from maas_ray.batch.counts import Counts, report, too_many
from maas_ray.batch.plan import Fields, Piece
from maas_ray.batch.spec import PredictSpec
from maas_ray.cluster import connect
from maas_ray.data.damage import check, weighed
from maas_ray.data.reading import Inspected, Raw, lacking_columns, read
from maas_ray.data.sources import AnySource
from maas_ray.errors import ConflictError, DataError, NotFoundError
from maas_ray.registry.bundle import WEIGHT_SUFFIXES, Bundle
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.spec import digest_of
from maas_ray.storage import FileEntry
from maas_ray.tasks import Task
from maas_ray.terminal.lines import progress, say

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "predictions"
BEGUN = "prediction.json"
_INSPECTED_TOGETHER = 64
_THREADS = 16


@dataclass(frozen=True)
class Predictions:
    """A complete prediction.

    Args:
        uri: the output directory.
        version: the version that answered, `name/number`.
        rows: number of answers.
        quarantined: number of rows without an answer; they are under `OUTPUT.prediction/quarantine/` with their error.
    """

    uri: str
    version: str
    rows: int
    quarantined: int


@dataclass(frozen=True)
class _Work:
    """Everything that an actor is sent."""

    bundle: Bundle
    spec: PredictSpec
    fields: Fields
    kept: "dict[str, pa.DataType]"
    uri: str
    max_quarantined: float


def predict(spec: PredictSpec, *, settings: Settings | None = None) -> Predictions:
    """Answer the rows of the input; resumes where an earlier run into the same output stopped.

    Raises:
        NotFoundError: the version does not exist.
        DataError: the input cannot be read or does not suit the version, or too many rows cannot be answered.
        ConflictError: the output holds something else.
    """
    started = time.monotonic()
    settings = settings or Settings.from_environment()
    with spec.at("version"):
        version = Registry(settings).resolve(spec.version)
    bundle = version.open()
    task = _task(bundle)
    uri = storage.join(spec.output)  # absolute: actors have other working directories
    with spec.at("input"):
        source = plan.guessed(spec.input) if isinstance(spec.input, str) else spec.input
        fields = Fields.of(task, source, spec.parameters)
        files = plan.listed(source, uri)
    connect(settings)
    from maas_ray.data.pipeline.blocks import quiet

    with quiet(sum(file.size for file in files)):
        inspected = _inspected(spec, source, files, fields)
        pieces = plan.pieces(source, inspected, spec.part_rows)
        # These checks come before the output is claimed: with a corrected input, it is another prediction.
        rows = plan.sample(source, inspected, fields)
        with spec.at("input"):
            lacking = fields.lacking(task, rows)
        with spec.at("keep"):
            kept = plan.kept_types(rows, spec.keep)
        document = _document(spec, version, source, pieces)
        done = _begin(uri, document)
        if done is not None:
            say(f"{uri}: all {done.rows:,} rows are answered by {done.version} already; nothing to do")
            return done
        if lacking:
            say(f"the input has no column {', '.join(lacking)}, which the model was trained with; it is left out")
        total = sum(piece.rows for piece in pieces)
        work = _Work(bundle, spec, fields, kept, uri, spec.max_quarantined * total)
        counts = _predicted(work, version.reference, pieces, total)
    _commit(uri, document, counts)
    about = writing.about(uri)
    for directory in (uri, about, storage.join(about, writing.QUARANTINE_DIRECTORY)):
        for name in storage.list_directory(directory):
            if name.startswith(".") and name.endswith(".partial"):  # left by a killed write
                storage.delete(storage.join(directory, name))
    report(spec, counts, time.monotonic() - started)
    return Predictions(uri, version.reference, counts.rows, counts.quarantined)


def _task(bundle: Bundle) -> Task:
    """The bundle's task, without its weights."""
    features = [entry.path for entry in bundle.artifact.files if not entry.path.endswith(WEIGHT_SUFFIXES)]
    with TemporaryDirectory() as directory:
        return bundle.load_task(bundle.artifact.fetch(Path(directory), features))


def _inspected(spec: PredictSpec, source: AnySource, files: Sequence[Any], fields: Fields) -> list[Inspected]:
    """Every input file, inspected once.

    Raises:
        DataError: some files cannot be used; names the first few.
    """
    import ray

    from maas_ray.data.pipeline.blocks import run, tables
    from maas_ray.data.pipeline.objects import packed, unpacked
    from maas_ray.data.pipeline.read_rows import inspect_files

    step = partial(inspect_files, sources=(source,), columns=fields.columns)
    groups = [files[at : at + _INSPECTED_TOGETHER] for at in range(0, len(files), _INSPECTED_TOGETHER)]
    with progress("looking at the input", len(files)) as bar:
        blocks = [ray.put(packed((0, file, None) for file in group)) for group in groups]
        looked = run(blocks, step, lambda _, rows: bar.update(rows))
        found = weighed([file for table in tables(looked) for _, file in unpacked(table)])
    problems = [file.problem for file in found if file.problem]
    if problems := problems or list(filter(None, [lacking_columns(source, found, fields.columns)])):
        more = f"\n… and {len(problems) - 5:,} more." if len(problems) > 5 else ""
        raise DataError(f"{spec.where('input')}: " + "\n".join(problems[:5]) + more, code="file_unusable")
    if not sum(file.rows for file in found):
        raise DataError(f"{spec.where('input')}: does not hold any rows.", code="input_empty")
    check(found, spec.max_quarantined)
    return sorted(found, key=lambda file: file.file.relative)


def _document(spec: PredictSpec, version: ModelVersion, source: AnySource, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Everything that decides the content of the output, and nothing else."""
    return {
        "version": version.reference,
        "digest": version.digest,
        "source": source.identity(),
        "input": digest_of([piece.name for piece in pieces]),
        **spec.model_dump(mode="json", include={"keep", "parameters", "part_rows", "engine", "compression"}),
    }


def _commit(uri: str, document: dict[str, Any], counts: Counts) -> None:
    below = f"{writing.QUARANTINE_DIRECTORY}/"
    answers = tuple(sorted((e for e in counts.entries if not e.path.startswith(below)), key=lambda entry: entry.path))
    quarantine = sorted([e.path, e.size, e.sha256] for e in counts.entries if e.path.startswith(below))
    meta = {
        "prediction": document, "rows": counts.rows, "quarantined": counts.quarantined, "quarantine": quarantine
    }  # fmt: skip
    storage.commit(uri, KIND, answers, meta, _manifest(uri))


def _manifest(uri: str) -> str:
    return storage.join(writing.about(uri), storage.MANIFEST)


def _begin(uri: str, document: dict[str, Any]) -> Predictions | None:
    """Claim the output for a prediction; gives the prediction if it is complete already.

    Raises:
        ConflictError: the output holds something else.
    """
    about = writing.about(uri)
    path = storage.join(about, BEGUN)
    try:
        begun = storage.read_json(path)
    except NotFoundError:
        if storage.exists(storage.join(uri, BEGUN)):
            return _of_earlier_version(uri, document)
        for directory in (uri, about):
            if there := [name for name in storage.list_directory(directory) if not name.startswith(".")]:
                raise ConflictError(
                    f"output: {directory} holds other files ({', '.join(there[:3])}…); choose another output, whose "
                    "directory is empty or new.",
                    code="output_not_empty",
                ) from None
        storage.write_json(path, document)
        return None
    if begun != document:
        names = [name for name in dict.fromkeys([*document, *begun]) if begun.get(name) != document.get(name)]
        differing = [f"{name} ({begun.get(name)!s:.60}, now {document.get(name)!s:.60})" for name in names]
        raise ConflictError(
            f"output: {uri} holds another prediction; what differs: {', '.join(differing)}. Choose another "
            "directory, or remove this one.",
            code="output_of_another_prediction",
        )
    return _complete(uri, document, _manifest(uri))


def _of_earlier_version(uri: str, document: dict[str, Any]) -> Predictions:
    """The complete prediction of an output that maas_ray 0.2 wrote, with its files among the answers.

    Raises:
        ConflictError: it is another prediction, or not complete: new answers would have other columns than the old.
    """
    done = _complete(uri, document, storage.join(uri, storage.MANIFEST))
    if done is None or storage.read_json(storage.join(uri, BEGUN)) != document:
        raise ConflictError(
            f"output: {uri} holds another or an unfinished prediction of an earlier maas_ray, whose files have another "
            "layout. Choose another directory, or remove this one.",
            code="output_of_earlier_version",
        )
    return done


def _complete(uri: str, document: dict[str, Any], manifest: str) -> Predictions | None:
    try:
        meta = storage.open_artifact(uri, KIND, manifest).meta
    except NotFoundError:
        return None
    return Predictions(uri, document["version"], meta["rows"], meta["quarantined"])


# --- on the cluster --------------------------------------------------------------------------------


def _predicted(work: _Work, reference: str, pieces: Sequence[Piece], total: int) -> Counts:
    """Answer every unfinished piece."""
    counts = Counts()
    with ThreadPoolExecutor(_THREADS) as threads:
        results = list(threads.map(lambda piece: writing.finished(work.uri, piece.name), pieces))
    for finished in results:
        if finished is not None:
            counts.add(*finished)
    left = [piece for piece, finished in zip(pieces, results, strict=True) if finished is None]
    counts.resumed = counts.rows + counts.quarantined
    if counts.resumed:
        say(f"{counts.resumed:,} of {total:,} rows were answered before")
    counts.check(work.max_quarantined, total, work.spec.max_quarantined)
    began = time.monotonic()
    with progress(f"{reference} answers", total) as bar:
        bar.update(counts.resumed)
        for entries, added in _answered(work, left):
            counts.add(entries, added)
            done = counts.rows + counts.quarantined
            seconds = time.monotonic() - began
            bar.update(done, f"{(done - counts.resumed) / seconds:,.0f} rows/s")
            counts.check(work.max_quarantined, total, work.spec.max_quarantined)
    counts.seconds = time.monotonic() - began
    return counts


def _answered(work: _Work, left: Sequence[Piece]) -> Iterator[tuple[list[FileEntry], dict[str, Any]]]:
    """Files and counts of pieces, each when it is finished."""
    if not left:
        return
    import ray
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    from maas_ray.data.pipeline.objects import packed, unpacked

    ray.data.DataContext.get_current().execution_options.preserve_order = False
    spec = work.spec
    with warnings.catch_warnings():
        # Ray will remove the two last arguments in 2.64 and does not have a replacement yet. By default an actor that
        # dies is restarted for ever, even if the input kills it.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = ray.data.from_arrow_refs([ray.put(packed([piece])) for piece in left]).map_batches(
            Worker,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=(work,),
            compute=ray.data.ActorPoolStrategy(size=min(spec.workers, len(left)), max_tasks_in_flight_per_actor=2),
            num_cpus=spec.cpus_per_worker,
            num_gpus=spec.gpus_per_worker or None,
            max_restarts=5,
            max_task_retries=5,
        )
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from unpacked(batch)


class Worker:
    """An actor of Ray Data that holds the model and writes the answers of pieces."""

    def __init__(self, work: _Work) -> None:
        from maas_ray.batch import answering

        self._work, self._model = work, answering.load(work.bundle, work.spec)
        self._schema = writing.schema_of(self._model.task.answer, work.kept)
        self._names = writing.output_names(work.kept, self._model.task.answer.model_fields)

    def __call__(self, batch: "pa.Table") -> Iterator["pa.Table"]:
        from maas_ray.data.pipeline.objects import packed, unpacked

        for piece in unpacked(batch):
            yield packed([self._piece(piece)])

    def close(self) -> None:
        """Release the model; an actor that ends need not."""
        self._model.close()

    def _piece(self, piece: Piece) -> tuple[list[FileEntry], dict[str, Any]]:
        work = self._work
        if done := writing.finished(work.uri, piece.name):  # by a worker that died before Ray heard of it
            return done
        rows: list[list[_Row]] = []

        def batches() -> Iterator[list[Any]]:
            for part in piece.parts:
                held: list[_Row] = []
                for raw in read(part, work.fields.columns):
                    held.append(self._row(raw))
                    if len(held) == work.spec.batch_size:
                        rows.append(held)
                        yield [row.request for row in held]
                        held = []
                if held:
                    rows.append(held)
                    yield [row.request for row in held]

        with writing.Output(work.uri, piece.name, self._schema) as output:
            for answers in self._model.answer(batches()):
                self._write(output, rows.pop(0), answers)
                if output.quarantined > work.max_quarantined:
                    spec = work.spec
                    raise too_many(output.quarantined, piece.rows, spec.max_quarantined, output.errors)
            entries = output.commit()
            return entries, output.counts() | {"errors": dict(output.errors)}

    def _row(self, raw: Raw) -> "_Row":
        from maas_ray.batch.answering import request_of
        from maas_ray.data.pipeline.rows import printable

        work = self._work
        kept = {"path": printable(raw.path), "position": raw.position}
        nulled: list[str] = []
        request = request_of(self._model.task, work.fields, work.spec.parameters, raw)
        if raw.row is not None and not isinstance(request, Exception):
            values = work.fields.kept(raw.row)
            for name, kind in work.kept.items():
                try:
                    kept[self._names[name]] = writing.fitted(values.get(name), kind)
                except ValueError as error:
                    if work.spec.keep is None:  # the column was not requested, so the answer matters more
                        nulled.append(f"{name} ({kind})")
                    else:
                        request = ValueError(f"column {name!r} {error}; remove it from `keep`, or correct the value")
        return _Row(raw, kept, request, tuple(nulled))

    def _write(self, output: writing.Output, rows: "Sequence[_Row]", answers: Sequence[Any]) -> None:
        from maas_ray.data.pipeline.rows import printable

        good, broken = [], []
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, Exception):
                problem = str(answer) or type(answer).__name__
                origin = {"path": row.kept["path"], "position": row.raw.position, "rows": row.raw.rows}
                broken.append(origin | {"error": printable(problem), "excerpt": row.raw.excerpt})
            else:
                good.append(row.kept | writing.answer_values(answer, self._schema))
                output.nulled.update(row.nulled)
        output.write(good)
        output.quarantine(broken)


@dataclass(frozen=True)
class _Row:
    """A row as it was read, its kept columns, its request, and columns whose values became null."""

    raw: Raw
    kept: dict[str, Any]
    request: Any
    nulled: tuple[str, ...]
