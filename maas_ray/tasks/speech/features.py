"""What speech recognition makes of sound and of transcripts, fitted on training rows: frames, and characters.

`Frontend` is what the task asks; here is the one for its own networks, in `speech_processor` that of Transformers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from maas_ray.errors import DataError
from maas_ray.spec import Spec
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import Row, UnlearntError
from maas_ray.tasks.speech import audio

if TYPE_CHECKING:
    import torch

BLANK = 0
HALVINGS = 2
"""How often the network ConvLstm halves time: its steps are of 40 ms, and a transcript needs one for each character."""
_FIT_CLIPS = 1000  # mean and deviation of a bin are known well long before; a spectrum takes milliseconds
_SPARE = 1.25  # clips of other splits may be longer than the longest of training


class LogMel(Spec):
    """`features: {type: log-mel}`: energy by pitch band, in decibels; windows of 25 ms, every 10 ms."""

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
    """`features: {type: mfcc}`: the cosine transform of the bands, of which the first coefficients are kept."""

    type: Literal["mfcc"] = "mfcc"
    """Which features."""
    bins: int = Field(40, ge=8, le=256)
    """Mel bands."""
    coefficients: int = Field(20, ge=2, le=256)
    """Coefficients that are kept; `bins` at most."""

    @model_validator(mode="after")
    def _enough_bins(self) -> "Mfcc":
        if self.coefficients > self.bins:
            raise ValueError(f"coefficients ({self.coefficients}) of {self.bins} bins; give as many bins at least.")
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
    """What was fitted on the training split."""

    samples: int
    """Most samples of a clip that is stored."""
    labels: int
    """Most labels of a transcript that is stored."""
    characters: list[str] = []
    """The vocabulary; a character's label is its place, and 1 more: 0 is the blank. Empty: a processor has it."""
    mean: list[float] = []
    """Of each number of a frame."""
    std: list[float] = []
    """Of each number of a frame."""
    convolutions: list[tuple[int, int]] = []
    """(kernel, stride) of the convolutions over samples of a model that a processor is for."""
    start_id: int | None = None
    """The label that a model with a decoder starts from. None: it has none, and is trained by CTC."""


class Frontend(Protocol):
    """Sound and transcripts as numbers, and back."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one stored row's features. Its first dimension is time, but for a fixed window."""

    @property
    def fixed(self) -> bool:
        """Whether all clips have features of that shape."""

    @property
    def blank(self) -> int:
        """The label that CTC writes between two others."""

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Samples to what the network takes, float16; time first, but for a fixed window."""

    def steps(self, samples: int) -> int | None:
        """Steps of CTC in a clip of so many samples. None: the model has a decoder, and no such bound."""

    def labels(self, text: str) -> list[int]:
        """A transcript's labels.

        Raises:
            ValueError: it holds what the vocabulary does not.
        """

    def text(self, labels: Sequence[int]) -> str:
        """The opposite of `labels`."""

    def heard(self, steps: Sequence[int]) -> str:
        """The text of the likeliest label at each step (CTC, greedily), or of the labels that a decoder wrote."""

    def scores(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """What a network trained by CTC says of `features` of these `lengths`.

        Returns:
            logits fp32 [B, steps, labels], and the steps of each row [B].
        """

    def save(self, directory: Path) -> None:
        """Write its files into a bundle."""


class Extent:
    """How long clips and transcripts are, seen one by one."""

    def __init__(self) -> None:
        self.samples = self.labels = 0

    def add(self, samples: int, labels: int) -> None:
        """One more row."""
        self.samples, self.labels = max(self.samples, samples), max(self.labels, labels)

    def room(self, most_samples: int) -> tuple[int, int]:
        """Samples and labels of a row that is stored."""
        return min(int(self.samples * _SPARE), most_samples), int(self.labels * _SPARE) + 8


class Frames:
    """The front end of this platform's networks: normalised frames, and characters.

    Args:
        features: which.
        rate: samples a second.
        state: what was fitted.
    """

    fixed, blank = False, BLANK

    def __init__(self, features: LogMel | Mfcc, rate: int, state: SpeechState) -> None:
        self._features, self._rate = features, rate
        self._mean, self._std = np.array(state.mean, np.float32), np.array(state.std, np.float32)
        self.characters = state.characters
        self._labels = {character: place for place, character in enumerate(state.characters, start=BLANK + 1)}
        self.shape = (audio.frames_in(state.samples, rate), features.width)

    @staticmethod
    def fit(features: LogMel | Mfcc, rate: int, rows: Iterable[Row], most_samples: int) -> SpeechState:
        """Fit the vocabulary, the extent, and the mean and deviation of each number of a frame."""
        extent, characters, clips = Extent(), Counter[str](), 0
        moments = np.zeros((2, features.width))
        for row in rows:
            extent.add(len(row["audio"]), len(row["transcript"]))
            characters.update(row["transcript"])
            if clips < _FIT_CLIPS:
                frames = features.compute(row["audio"], rate).astype(np.float64)
                moments += frames.mean(axis=0), (frames**2).mean(axis=0)
                clips += 1
        if not clips:
            raise DataError("speech recognition needs a clip to be fitted on; the training split has none.")
        mean, square = moments / clips
        std = np.sqrt(np.maximum(square - mean**2, 1e-4))
        samples, labels = extent.room(most_samples)
        return SpeechState(
            samples=samples, labels=labels, characters=sorted(characters), mean=mean.tolist(), std=std.tolist()
        )

    def features(self, samples: np.ndarray) -> np.ndarray:
        return ((self._features.compute(samples, self._rate) - self._mean) / self._std).astype(np.float16)

    def steps(self, samples: int) -> int:
        return -(-audio.frames_in(samples, self._rate) // (1 << HALVINGS))

    def labels(self, text: str) -> list[int]:
        try:
            return [self._labels[character] for character in text]
        except KeyError as error:
            raise UnlearntError(f"the transcript has {error.args[0]!r}, which no transcript in training has") from None

    def text(self, labels: Sequence[int]) -> str:
        return "".join(self.characters[label - BLANK - 1] for label in labels)

    def heard(self, steps: Sequence[int]) -> str:
        return " ".join(self.text([label for label, _ in groupby(steps) if label != BLANK]).split())

    def scores(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> tuple["torch.Tensor", "torch.Tensor"]:
        logits, lengths = model(features=batch["features"], lengths=batch["lengths"])
        return logits.float(), lengths

    def save(self, directory: Path) -> None:
        """Nothing: all it has is in its state."""
