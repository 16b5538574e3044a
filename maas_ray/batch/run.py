"""`predict`: a version's answers to the rows of files, each row once, through crashes.

    list and inspect the input ─▶ pieces ─▶ those not answered yet ─▶ Ray Data: actors that hold the model ─▶ manifest

    OUTPUT/prediction.json          what is being predicted; another prediction is refused here
    OUTPUT/part-<digest>.parquet    a piece's answers, put there whole; named by the piece's content
    OUTPUT/quarantine/part-….parquet  its rows that could not be answered, with path, position, error, excerpt
    OUTPUT/manifest.json            every file with its sha256, written last: the prediction is complete

A piece whose file is there is not answered again, whoever was killed since: this process, an actor, a machine.
"""

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from maas_ray import storage
from maas_ray.batch import plan, writing
from maas_ray.batch.plan import Fields, Piece
from maas_ray.batch.spec import PredictSpec
from maas_ray.cluster import connect
from maas_ray.data.reading import Inspected, Raw, read
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
    """What was predicted.

    Args:
        uri: the output directory.
        version: whose answers they are, `name/number`.
        rows: answers.
        quarantined: rows without one; they lie under `quarantine/` with their error.
    """

    uri: str
    version: str
    rows: int
    quarantined: int


@dataclass(frozen=True)
class _Work:
    """What every actor is told."""

    bundle: Bundle
    spec: PredictSpec
    fields: Fields
    kept: "dict[str, pa.DataType]"
    uri: str
    most_quarantined: float


def predict(spec: PredictSpec, *, settings: Settings | None = None) -> Predictions:
    """Answer the rows of the input; goes on where an earlier run into the same output stopped.

    Raises:
        NotFoundError: there is no such version.
        DataError: the input cannot be read, is not what the version can answer, or too much of it is broken.
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
        # Before the output is claimed: what is refused here, and mended, is another prediction.
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
            say(f"the input has no column {', '.join(lacking)}, which the model knows; answers go without")
        total = sum(piece.rows for piece in pieces)
        work = _Work(bundle, spec, fields, kept, uri, spec.max_quarantined * total)
        counts = _predicted(work, version.reference, pieces, total)
    files_there = sorted(counts.entries, key=lambda entry: entry.path)
    meta = {"prediction": document, "rows": counts.rows, "quarantined": counts.quarantined}
    storage.commit(uri, KIND, tuple(files_there), meta)
    for directory in (uri, storage.join(uri, writing.QUARANTINE_DIRECTORY)):
        for name in storage.list_directory(directory):
            if name.startswith(".") and name.endswith(".partial"):  # of a write that was killed
                storage.delete(storage.join(directory, name))
    _report(spec, counts, time.monotonic() - started)
    return Predictions(uri, version.reference, counts.rows, counts.quarantined)


def _task(bundle: Bundle) -> Task:
    """The bundle's task, without its weights."""
    features = [entry.path for entry in bundle.artifact.files if not entry.path.endswith(WEIGHT_SUFFIXES)]
    with TemporaryDirectory() as directory:
        return bundle.load_task(bundle.artifact.fetch(Path(directory), features))


def _inspected(spec: PredictSpec, source: AnySource, files: Sequence[Any], fields: Fields) -> list[Inspected]:
    """Every file, looked at once.

    Raises:
        DataError: some cannot be used; names the first few.
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
        found = [file for table in tables(looked) for _, file in unpacked(table)]
    if problems := [file.problem for file in found if file.problem]:
        more = f"\n… and {len(problems) - 5:,} more." if len(problems) > 5 else ""
        raise DataError(f"{spec.where('input')}: " + "\n".join(problems[:5]) + more)
    if not sum(file.rows for file in found):
        raise DataError(f"{spec.where('input')}: holds no rows at all.")
    return sorted(found, key=lambda file: file.file.relative)


def _document(spec: PredictSpec, version: ModelVersion, source: AnySource, pieces: Sequence[Piece]) -> dict[str, Any]:
    """What decides what the output holds, and nothing else."""
    return {
        "version": version.reference,
        "digest": version.digest,
        "source": source.identity(),
        "input": digest_of([piece.name for piece in pieces]),
        **spec.model_dump(mode="json", include={"keep", "parameters", "part_rows", "engine", "compression"}),
    }


def _begin(uri: str, document: dict[str, Any]) -> Predictions | None:
    """Claim the output for a prediction; gives what was predicted, where it is complete.

    Raises:
        ConflictError: the output holds something else.
    """
    path = storage.join(uri, BEGUN)
    try:
        begun = storage.read_json(path)
    except NotFoundError:
        if there := [name for name in storage.list_directory(uri) if not name.startswith(".")]:
            raise ConflictError(
                f"output: {uri} holds other files ({', '.join(there[:3])}…); name an empty or a new directory."
            ) from None
        storage.write_json(path, document)
        return None
    if begun != document:
        names = [name for name in dict.fromkeys([*document, *begun]) if begun.get(name) != document.get(name)]
        told = [f"{name} ({begun.get(name)!s:.60}, now {document.get(name)!s:.60})" for name in names]
        raise ConflictError(
            f"output: {uri} holds another prediction; what differs: {', '.join(told)}. Name another "
            "directory, or remove that one."
        )
    try:
        meta = storage.open_artifact(uri, KIND).meta
    except NotFoundError:
        return None
    return Predictions(uri, document["version"], meta["rows"], meta["quarantined"])


# --- on the cluster --------------------------------------------------------------------------------


class _Counts:
    """What has been answered, of all pieces."""

    def __init__(self) -> None:
        self.entries: list[FileEntry] = []
        self.rows = self.quarantined = self.found = 0
        self.errors: Counter[str] = Counter()
        self.nulled: Counter[str] = Counter()
        self.seconds = 0.0

    def add(self, entries: Sequence[FileEntry], counts: dict[str, Any]) -> None:
        self.entries += entries
        self.rows += counts["rows"]
        self.quarantined += counts["quarantined"]
        self.errors.update(counts["errors"])
        self.nulled.update(counts["nulled"])

    def check(self, most: float, total: int, share: float) -> None:
        if self.quarantined > most:
            raise too_many(self.quarantined, total, share, self.errors)


def too_many(quarantined: int, total: int, share: float, errors: Counter[str]) -> DataError:
    """Why predicting stops."""
    lines = "".join(f"\n  {count:,} × {error}" for error, count in errors.most_common(3))
    return DataError(
        f"{quarantined:,} of {total:,} rows cannot be answered, more than max_quarantined ({share:g}) allows. What was "
        f"answered stays; run again, it is not repeated. The commonest errors:{lines}\n"
        "Mend the input, or raise max_quarantined."
    )


def _predicted(work: _Work, reference: str, pieces: Sequence[Piece], total: int) -> _Counts:
    """Answer every piece that is not answered yet."""
    counts = _Counts()
    with ThreadPoolExecutor(_THREADS) as threads:
        there = list(threads.map(lambda piece: writing.found(work.uri, piece.name), pieces))
    for finished in there:
        if finished is not None:
            counts.add(*finished)
    left = [piece for piece, finished in zip(pieces, there, strict=True) if finished is None]
    counts.found = counts.rows + counts.quarantined
    if counts.found:
        say(f"{counts.found:,} of {total:,} rows were answered before")
    counts.check(work.most_quarantined, total, work.spec.max_quarantined)
    began = time.monotonic()
    with progress(f"{reference} answers", total) as bar:
        bar.update(counts.found)
        for entries, found in _answered(work, left):
            counts.add(entries, found)
            done = counts.rows + counts.quarantined
            seconds = time.monotonic() - began
            bar.update(done, f"{(done - counts.found) / seconds:,.0f} rows/s")
            counts.check(work.most_quarantined, total, work.spec.max_quarantined)
    counts.seconds = time.monotonic() - began
    return counts


def _answered(work: _Work, left: Sequence[Piece]) -> Iterator[tuple[list[FileEntry], dict[str, Any]]]:
    """The pieces as they are finished: their files and counts."""
    if not left:
        return
    import ray
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    from maas_ray.data.pipeline.objects import packed, unpacked

    ray.data.DataContext.get_current().execution_options.preserve_order = False
    spec = work.spec
    with warnings.catch_warnings():
        # Ray will take the two last arguments away, in 2.64, and has nothing in their place yet: by default an actor
        # that dies is started again for ever, also where it is the input that kills it.
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
    """An actor of Ray Data's that holds the model; called with pieces, it writes their answers."""

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
        """Let go of the model; an actor that ends need not."""
        self._model.close()

    def _piece(self, piece: Piece) -> tuple[list[FileEntry], dict[str, Any]]:
        work = self._work
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
                if output.quarantined > work.most_quarantined:
                    spec = work.spec
                    raise too_many(output.quarantined, piece.rows, spec.max_quarantined, output.errors)
            entries = output.commit()
            return entries, output.counts() | {"errors": dict(output.errors)}

    def _row(self, raw: Raw) -> "_Row":
        from maas_ray.batch.answering import request_of

        work = self._work
        place = {"path": _printable(raw.path), "position": raw.position}
        nulled: list[str] = []
        request = request_of(self._model.task, work.fields, work.spec.parameters, raw)
        if raw.row is not None and not isinstance(request, Exception):
            values = work.fields.kept(raw.row)
            for name, kind in work.kept.items():
                try:
                    place[self._names[name]] = writing.fitted(values.get(name), kind)
                except ValueError as error:
                    if work.spec.keep is None:  # nobody asked for it: the answer counts more
                        nulled.append(f"{name} ({kind})")
                    else:
                        request = ValueError(f"column {name!r} {error}; leave it out of `keep`, or mend it")
        return _Row(raw, place, request, tuple(nulled))

    def _write(self, output: writing.Output, rows: "Sequence[_Row]", answers: Sequence[Any]) -> None:
        good, broken = [], []
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, Exception):
                told = str(answer) or type(answer).__name__
                place = {"path": row.kept["path"], "position": row.raw.position, "rows": row.raw.rows}
                broken.append(place | {"error": _printable(told), "excerpt": row.raw.excerpt})
            else:
                good.append(row.kept | writing.answer_values(answer, self._schema))
                output.nulled.update(row.nulled)
        output.write(good)
        output.set_aside(broken)


@dataclass(frozen=True)
class _Row:
    """A row as it was read, what is kept of it, what is asked, and columns whose values cannot be kept."""

    raw: Raw
    kept: dict[str, Any]
    request: Any
    nulled: tuple[str, ...]


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _report(spec: PredictSpec, counts: _Counts, seconds: float) -> None:
    """Say what became of the rows."""
    new = counts.rows + counts.quarantined - counts.found
    speed = f", {new / counts.seconds:,.0f} rows/s" if new and counts.seconds else ""
    say(f"{counts.rows:,} rows answered in {seconds:.1f} s{speed}")
    if counts.quarantined:
        reasons = "; ".join(f"{count:,} × {error}" for error, count in counts.errors.most_common(3))
        say(f"  {counts.quarantined:,} could not be, and lie under {writing.QUARANTINE_DIRECTORY}/: {reasons}")
    for column, count in counts.nulled.most_common():
        say(f"  column {column}: {count:,} values are of another type than in the first rows, and null in the output")
    say(f"  {spec.output}")
