"""Sound and transcripts as numbers, fitted on training rows: frames of features, and characters.

`Frontend` is the interface that the task uses. `Frames` implements it for the platform's networks,
`processor.Processor` for Transformers' models.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from maas_ray.errors import DataError, InvalidError, UnlearntError
from maas_ray.spec import Spec
from maas_ray.tasks.fitting import Totals
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import Row
from maas_ray.tasks.speech import audio

if TYPE_CHECKING:
    import torch

BLANK = 0
HALVINGS = 2
"""Number of times that the network ConvLstm halves time. Its steps last 40 ms; a character needs at least one step."""
_FIT_CLIPS = 1000  # clips for mean and deviation, which need fewer; computing a spectrum takes milliseconds
_SPARE = 1.25  # clips of other splits may be longer than the longest training clip


class LogMel(Spec):
    """`features: {type: log-mel}`: energy of mel bands in decibels, in windows of 25 ms, every 10 ms."""

    type: Literal["log-mel"] = "log-mel"
    """Which features."""
    bins: int = Field(40, ge=8, le=256)
    """Mel bands."""

    @property
    def width(self) -> int:
        """Numbers in a frame."""
        return self.bins

    def compute(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """float32 [frames, width]"""
        return audio.log_mel(samples, rate, self.bins)


class Mfcc(Spec):
    """`features: {type: mfcc}`: the first coefficients of the cosine transform of the mel bands."""

    type: Literal["mfcc"] = "mfcc"
    """Which features."""
    bins: int = Field(40, ge=8, le=256)
    """Mel bands."""
    coefficients: int = Field(20, ge=2, le=256)
    """Number of coefficients; at most `bins`."""

    @model_validator(mode="after")
    def _enough_bins(self) -> "Mfcc":
        if self.coefficients > self.bins:
            raise InvalidError(
                "too_many_coefficients", f"coefficients ({self.coefficients}) must not exceed bins ({self.bins})."
            )
        return self

    @property
    def width(self) -> int:
        """Numbers in a frame."""
        return self.coefficients

    def compute(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """float32 [frames, width]"""
        return audio.mfcc(samples, rate, self.bins, self.coefficients)


AnyFeatures = Annotated[LogMel | Mfcc, Field(discriminator="type")]


class SpeechState(Spec):
    """Sizes, vocabulary and statistics of the training split."""

    samples: int
    """Maximum samples of a stored clip."""
    labels: int
    """Maximum labels of a stored transcript."""
    characters: list[str] = []
    """The vocabulary. A character's label is its index plus 1, since 0 is the blank. Empty: the processor has it."""
    mean: list[float] = []
    """Mean of each number of a frame."""
    std: list[float] = []
    """Standard deviation of each number of a frame."""
    convolutions: list[tuple[int, int]] = []
    """(kernel, stride) of the convolutions over samples in the processor's model."""
    start_id: int | None = None
    """The start label of a model with a decoder. None: the model is trained by CTC."""


class Frontend(Protocol):
    """Encodes sound and transcripts as numbers, and decodes labels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a stored row's features. The first dimension is time, unless the window is fixed."""

    @property
    def fixed(self) -> bool:
        """True if all clips have features of exactly that shape."""

    @property
    def blank(self) -> int:
        """The label that CTC writes between two equal labels."""

    def features(self, samples: np.ndarray) -> np.ndarray:
        """The network's input for samples, float16; time first, unless the window is fixed."""

    def steps(self, samples: int) -> int | None:
        """Number of CTC steps in a clip of that many samples. None: the model has a decoder and no such bound."""

    def labels(self, text: str) -> list[int]:
        """A transcript's labels.

        Raises:
            InvalidError: it contains characters that are not in the vocabulary.
        """

    def text(self, labels: Sequence[int]) -> str:
        """The transcript of labels, the inverse of `labels`."""

    def decode(self, steps: Sequence[int]) -> str:
        """The text of the most likely label at each step (greedy CTC), or of the labels that a decoder wrote."""

    def scores(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Output of a network trained by CTC for `features` with `lengths`.

        Returns:
            logits fp32 [B, steps, labels], and the number of steps of each row [B].
        """

    def save(self, directory: Path) -> None:
        """Write its files into a bundle."""


class SpeechTotals(Totals):
    """The characters of transcripts, and the lengths of the longest clip and of the longest transcript.

    Args:
        count_labels: the number of labels of a transcript. None: its characters are its labels.
    """

    def __init__(self, count_labels: Callable[[str], int] | None = None) -> None:
        self._count_labels = count_labels or len
        self.characters: set[str] = set()
        self.samples = self.labels = 0

    def add(self, row: Row) -> None:
        self.characters.update(row["transcript"])
        self.samples = max(self.samples, len(row["audio"]))
        self.labels = max(self.labels, self._count_labels(row["transcript"]))

    def merge(self, other: "SpeechTotals") -> None:
        self.characters |= other.characters
        self.samples, self.labels = max(self.samples, other.samples), max(self.labels, other.labels)

    def detached(self) -> "SpeechTotals":
        detached = SpeechTotals()
        detached.merge(self)
        return detached

    def stored(self, max_samples: int) -> tuple[int, int]:
        """Maximum samples and labels of a stored row, with room for longer rows of other splits."""
        return min(int(self.samples * _SPARE), max_samples), int(self.labels * _SPARE) + 8


def moments(features: LogMel | Mfcc, rate: int, rows: Iterable[Row]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each number of a frame, over the first clips."""
    clips, sums = 0, np.zeros((2, features.width))
    for row in islice(rows, _FIT_CLIPS):
        frames = features.compute(row["audio"], rate).astype(np.float64)
        sums += frames.mean(axis=0), (frames**2).mean(axis=0)
        clips += 1
    if not clips:
        raise DataError("the training split has no clips; speech recognition needs at least one.", code="split_empty")
    mean, square = sums / clips
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 1e-4)).tolist()


class Frames:
    """The front end of this platform's networks: normalised frames, and characters.

    Args:
        features: the kind of features.
        rate: samples per second.
        state: sizes, vocabulary and statistics.
    """

    fixed, blank = False, BLANK

    def __init__(self, features: LogMel | Mfcc, rate: int, state: SpeechState) -> None:
        self._features, self._rate = features, rate
        self._mean, self._std = np.array(state.mean, np.float32), np.array(state.std, np.float32)
        self.characters = state.characters
        self._labels = {character: label for label, character in enumerate(state.characters, start=BLANK + 1)}
        self.shape = (audio.frames_in(state.samples, rate), features.width)

    def features(self, samples: np.ndarray) -> np.ndarray:
        return ((self._features.compute(samples, self._rate) - self._mean) / self._std).astype(np.float16)

    def steps(self, samples: int) -> int:
        return -(-audio.frames_in(samples, self._rate) // (1 << HALVINGS))

    def labels(self, text: str) -> list[int]:
        try:
            return [self._labels[character] for character in text]
        except KeyError as error:
            raise UnlearntError(
                f"the transcript contains {error.args[0]!r}, which does not occur in the training split"
            ) from None

    def text(self, labels: Sequence[int]) -> str:
        return "".join(self.characters[label - BLANK - 1] for label in labels)

    def decode(self, steps: Sequence[int]) -> str:
        return " ".join(self.text([label for label, _ in groupby(steps) if label != BLANK]).split())

    def scores(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> tuple["torch.Tensor", "torch.Tensor"]:
        logits, lengths = model(features=batch["features"], lengths=batch["lengths"])
        return logits.float(), lengths

    def save(self, directory: Path) -> None:
        """Write nothing: the state holds everything."""
