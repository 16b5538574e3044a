"""The checkpoints of a run in storage: listed, verified, chosen and pruned."""

import contextlib
import math
from collections.abc import Callable, Collection, Sequence

from maas_ray import storage
from maas_ray.errors import CorruptError, NotFoundError
from maas_ray.storage import FileEntry
from maas_ray.training.checkpoints import layout
from maas_ray.training.checkpoints.position import Position

_BEST = "validation/loss"


def saved(home: str) -> list[str]:
    """URIs of a run's checkpoints, whole or not, the newest first."""
    names = [name for name in storage.list_directory(home) if name.startswith(layout.PREFIX)]
    return [storage.join(home, name) for name in sorted(names, key=layout.age_of, reverse=True)]


def inspect(uri: str) -> tuple[Position, list[FileEntry]]:
    """A checkpoint's position and every rank's files. Sizes are checked; contents are not read.

    Metrics that were measured on the checkpoint later are part of the position.

    Raises:
        CorruptError: a file is missing or cut off; the message names it.
    """
    try:
        position = Position.parse(storage.read_json(storage.join(uri, layout.POSITION)), source=uri)
        listings = [storage.read_json(storage.join(uri, layout.manifest(rank))) for rank in range(position.workers)]
        entries = [FileEntry(e["path"], e["size"], e["sha256"]) for listing in listings for e in listing]
    except NotFoundError as error:
        raise CorruptError(f"checkpoint {uri} is not whole: {error}", code="checkpoint_incomplete") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"checkpoint {uri} has a manifest that cannot be read: {error}", code="manifest_unreadable"
        ) from error
    storage.check_sizes(uri, entries)
    return position.model_copy(update={"metrics": position.metrics or validation(uri)}), entries


def validation(uri: str) -> dict[str, float]:
    """Metrics that were measured on a checkpoint beside the training. Empty: none yet."""
    try:
        return {name: float(value) for name, value in storage.read_json(storage.join(uri, layout.VALIDATION)).items()}
    except NotFoundError:
        return {}


def put_validation(uri: str, metrics: dict[str, float]) -> None:
    """Store metrics that were measured on a checkpoint in its directory."""
    storage.write_json(storage.join(uri, layout.VALIDATION), metrics)


def newest(home: str, say: Callable[[str], None]) -> tuple[str, Position] | None:
    """The newest whole checkpoint of a run, every byte verified. `say` gets a line for each one that is skipped."""
    for uri in saved(home):
        try:
            position, entries = inspect(uri)
            storage.verify(uri, entries)
        except CorruptError as error:
            say(skipped(str(error)))
            continue
        return uri, position
    return None


def latest(home: str) -> Position | None:
    """The position of the newest checkpoint whose files all have their size. Their bytes are not read."""
    for uri in saved(home):
        with contextlib.suppress(CorruptError):
            return inspect(uri)[0]
    return None


def skipped(problem: str) -> str:
    """The line for a checkpoint that is not whole."""
    return f"{problem}\nfalling back to the checkpoint before"


def comparable_loss(position: Position) -> float | None:
    """The loss by which a run's checkpoints are compared, on the same rows for all. None: not measured, or not finite.

    The last checkpoint's metrics are of more validation rows than those of the others, which are of `max_rows`.
    """
    loss = position.metrics.get(_BEST) if position.comparable_loss is None else position.comparable_loss
    return loss if loss is not None and math.isfinite(loss) else None


def best(home: str, say: Callable[[str], None]) -> tuple[str, Position] | None:
    """The whole checkpoint with the lowest validation loss, every byte verified. None: no finite loss was measured.

    Args:
        home: URI of the run's directory.
        say: called with a line for each checkpoint with a lower loss that is damaged.
    """
    measured = []
    for uri in saved(home):
        with contextlib.suppress(CorruptError):
            position, entries = inspect(uri)
            if (loss := comparable_loss(position)) is not None:
                measured.append((loss, uri, position, entries))
    for _, uri, position, entries in sorted(measured, key=lambda item: item[0]):
        try:
            storage.verify(uri, entries)
        except CorruptError as error:
            say(f"{error}\nfalling back to the checkpoint with the next higher loss")
            continue
        return uri, position
    return None


def prune(
    home: str, keep: int, *, trusted: Sequence[str] = (), damaged: Collection[str] = (), validating: str = ""
) -> None:
    """Delete checkpoints that are older than the newest `keep` whole ones.

    The checkpoint with the lowest validation loss is kept, and so is the one named `validating`. Contents are not read
    here, only sizes, so one that is damaged may seem whole; those that this attempt knows come first.

    Args:
        home: URI of the run's directory.
        keep: how many to keep.
        trusted: checkpoints of this attempt, in order. The first is the one that it resumed from, whose bytes were
            verified; it is never deleted.
        damaged: checkpoints that this attempt found to be damaged; they are deleted.
        validating: name of the checkpoint that is being validated.
    """
    whole: list[tuple[str, Position]] = []
    broken: list[str] = []
    for uri in saved(home):
        try:
            position, _ = inspect(uri)
        except CorruptError:
            broken += [uri] if whole or uri in damaged else []  # a newer one may still be on its way to storage
        else:
            if uri in damaged:
                broken.append(uri)
            else:
                whole.append((uri, position))
    losses = [(loss, uri) for uri, position in whole if (loss := comparable_loss(position)) is not None]
    known = [uri for uri in reversed(trusted) if uri in {uri for uri, _ in whole}]
    ordered = list(dict.fromkeys([*known, *(uri for uri, _ in whole)]))
    kept = {*ordered[:keep], *trusted[:1], *(uri for _, uri in sorted(losses)[:1])}
    kept |= {storage.join(home, validating)} if validating else set()
    for uri in [*broken, *ordered]:
        if uri not in kept:
            storage.delete(uri)
