"""`automatic-speech-recognition`: transcribes a clip of speech.

A dataset stores features, not samples: a second of speech takes 8 KB instead of 32 KB, and computing features in
training, a millisecond per clip, would lengthen each step of a small network by half. Therefore a dataset is prepared
for a kind of network: with `features` for the platform's own, with `processor` for a model of Transformers.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from pydantic import Field, model_validator

from maas_ray.errors import DataError, InvalidError, RequestError, UnlearntError
from maas_ray.tasks.fitting import SummedTaskSpec
from maas_ray.tasks.metrics import mean_loss
from maas_ray.tasks.network import Forward
from maas_ray.tasks.pretrained import Pretrained, model_directory
from maas_ray.tasks.rows import Column, Row, TensorSpec
from maas_ray.tasks.speech import audio
from maas_ray.tasks.speech.features import AnyFeatures, Frames, Frontend, LogMel, SpeechState, SpeechTotals, moments
from maas_ray.tasks.speech.networks import ConvLstm
from maas_ray.tasks.speech.processor import Processor, identity_of
from maas_ray.tasks.speech.requests import SpeechAnswer, SpeechRow
from maas_ray.tasks.task import Outcomes, Task
from maas_ray.tasks.traits import Sound, Trait, lengths, picture_of

if TYPE_CHECKING:
    import torch

_NO_LABEL = -100  # marks positions without a label, as in Transformers


class AutomaticSpeechRecognitionSpec(SummedTaskSpec):
    """`task: {type: automatic-speech-recognition}`"""

    type: Literal["automatic-speech-recognition"] = "automatic-speech-recognition"
    """Which task."""
    features: AnyFeatures = LogMel()
    """Features of the platform's own networks, without `processor`."""
    processor: str | None = None
    """Local directory of a Transformers model for speech, such as Wav2Vec2 or Whisper, for the network `pretrained`. It
    brings features and vocabulary; if it lacks a vocabulary, the characters of the transcripts are used."""
    sample_rate: int = Field(16_000, ge=4_000, le=96_000)
    """Samples per second to resample clips to."""
    max_seconds: float = Field(30.0, ge=audio.MIN_SECONDS, le=600)
    """Maximum length of a clip, in training and in requests, seconds."""
    case: Literal["lower", "upper", "keep"] | None = None
    """Case of transcripts. None: lower, or keep if there is a processor."""
    language: str | None = Field(None, min_length=2, max_length=8)
    """Language of the transcripts, such as `en`. Answers name it, and a multilingual Whisper needs it."""

    @property
    def columns(self) -> tuple[str, ...]:
        return "audio", "transcript"

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("audio",)

    @model_validator(mode="after")
    def _either(self) -> "AutomaticSpeechRecognitionSpec":
        if self.processor is not None and "features" in self.model_fields_set and self.features != LogMel():
            raise InvalidError(
                "conflicting_fields", "features: `processor` brings its own features; remove one of the two."
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The fields, with digests of its files in place of a processor's path."""
        document = self.document()
        if self.processor is not None:
            document["processor"] = identity_of(self.processor)
        return document

    def parse_row(self, row: Row) -> Row | None:
        """`audio` as mono samples at the task's rate; `transcript` with single spaces; None if either is empty."""
        content, transcript = row["audio"], row["transcript"]
        if content is None or transcript is None:
            return None
        text = self._text(transcript)
        if not text:
            return None
        if not isinstance(content, bytes):
            raise InvalidError("wrong_type", f"audio is a {type(content).__name__}, not an audio file")
        samples = audio.decode(content, self.sample_rate, self.max_seconds, whole=True)
        return {"audio": samples, "transcript": text}

    def _text(self, transcript: Any) -> str:
        if isinstance(transcript, bytes):
            try:
                transcript = transcript.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise InvalidError("not_utf_8", f"the transcript is not UTF-8: byte {error.start}") from error
        if not isinstance(transcript, str):
            raise InvalidError("wrong_type", f"transcript is a {type(transcript).__name__}, not a string")
        text = " ".join(unicodedata.normalize("NFC", transcript).split())
        case = self.case or ("lower" if self.processor is None else "keep")
        return {"lower": text.lower(), "upper": text.upper(), "keep": text}[case]

    def totals(self) -> SpeechTotals:
        if self.processor is None:
            return SpeechTotals()
        return Processor.totals(model_directory(self.processor), self.sample_rate, self.language)

    def fit_sample(self, rows: Iterable[Row]) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the numbers of a frame; a processor needs none."""
        return ([], []) if self.processor is not None else moments(self.features, self.sample_rate, rows)

    def fitted(self, sample: tuple[list[float], list[float]], totals: SpeechTotals) -> "AutomaticSpeechRecognition":
        """The vocabulary, and the statistics of frames or a processor's."""
        max_samples = int(self.max_seconds * self.sample_rate)
        if self.processor is not None:
            directory = model_directory(self.processor)
            processor, state = Processor.fit(directory, totals, max_samples, self.language)
            return AutomaticSpeechRecognition(self, state, processor)
        samples, labels = totals.stored(max_samples)
        mean, std = sample
        characters = sorted(totals.characters)
        state = SpeechState(samples=samples, labels=labels, characters=characters, mean=mean, std=std)
        return AutomaticSpeechRecognition(self, state)


class AutomaticSpeechRecognition(Task):
    """A fitted `automatic-speech-recognition` task.

    Args:
        spec: the fields under `task:`.
        state: sizes, vocabulary and statistics of the training split.
        processor: the fitted processor, if the spec names one.
    """

    spec: AutomaticSpeechRecognitionSpec
    spec_type = AutomaticSpeechRecognitionSpec
    networks = (ConvLstm, Pretrained)
    unit = "rows"
    kind = "predict"
    headline = ("wer", "cer", "loss")
    request, answer, file = SpeechRow, SpeechAnswer, "audio"

    def __init__(
        self, spec: AutomaticSpeechRecognitionSpec, state: SpeechState, processor: Processor | None = None
    ) -> None:
        super().__init__(spec)
        self.state, self._processor = state, processor
        self._decoder = processor if processor and processor.fixed else None
        self.frontend: Frontend = processor or Frames(spec.features, spec.sample_rate, state)
        if processor:
            self.auto_model = processor.auto_model  # type: ignore[misc]  # the processor decides the class
            self.couples_rows = not processor.masked  # type: ignore[misc]  # and whether clips see padding
        self._max_seconds = min(spec.max_seconds, processor.window_s if processor else spec.max_seconds)

    # --- features

    @property
    def stored(self) -> dict[str, Column]:
        return {
            "features": Column("float16", self.frontend.shape),
            "length": Column("int32"),
            "labels": Column("int32", (self.state.labels,)),
            "label_length": Column("int32"),
        }

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """`features` float16 [n, *shape], `labels` int32 [n, max labels], and the lengths of both [n]."""
        features = np.zeros((len(rows), *self.frontend.shape), np.float16)
        labels = np.full((len(rows), self.state.labels), _NO_LABEL, np.int32)
        lengths, label_lengths = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int32)
        for index, row in enumerate(rows):
            row_labels = self._labels(row)
            values = self.frontend.features(row["audio"])
            features[index, : len(values)] = values
            labels[index, : len(row_labels)] = row_labels
            lengths[index], label_lengths[index] = len(values), len(row_labels)
        return {"features": features, "length": lengths, "labels": labels, "label_length": label_lengths}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        seconds = lengths("seconds", (len(row["audio"]) / self.spec.sample_rate for row in rows))
        return [seconds, lengths("characters of the transcript", (len(row["transcript"]) for row in rows))]

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The sound if samples are stored, else the features as a picture; and the transcript."""
        transcript = self.frontend.text(stored["labels"][: int(stored["label_length"])].tolist())
        features = stored["features"] if self.frontend.fixed else stored["features"][: int(stored["length"])]
        if features.ndim == 1:
            return {"audio": Sound(features, self.spec.sample_rate), "transcript": transcript}
        bands = features if self.frontend.fixed else features.T
        note = f"{bands.shape[0]} features over {bands.shape[1]} frames"
        return {"audio": picture_of(bands, note), "transcript": transcript}

    def _labels(self, row: Row) -> list[int]:
        """A row's labels.

        Raises:
            InvalidError: the row can be neither trained on nor measured.
        """
        samples, rate = len(row["audio"]), self.spec.sample_rate
        if samples > self.state.samples:
            raise UnlearntError(
                f"the clip is more than a quarter longer than all clips in training: {samples / rate:.0f} s"
            )
        labels = self.frontend.labels(row["transcript"])
        if len(labels) > self.state.labels:
            raise UnlearntError("the transcript is more than a quarter longer than all transcripts in training")
        steps = self.frontend.steps(samples)
        # CTC writes one label per step, and a blank between two equal labels.
        repeats = sum(label == following for label, following in pairwise(labels))
        if steps is not None and len(labels) + repeats > steps:
            raise InvalidError(
                "transcript_too_long", "the transcript has more labels than the network has steps for the clip"
            )
        return labels

    def save_state(self, directory: Path) -> dict[str, Any]:
        self.frontend.save(directory)
        return self.state.document()

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "AutomaticSpeechRecognition":
        fitted = SpeechState.parse(state, source=f"{directory}: features")
        processor = Processor(directory, fitted, spec.language) if spec.processor is not None else None
        return cls(spec, fitted, processor)

    # --- model

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        """`features` float32 [B, longest, …], `lengths`, `labels` int64 [B, longest], `label_lengths`."""
        import torch

        lengths, label_lengths = batch["length"].astype(np.int64), batch["label_length"].astype(np.int64)
        features = batch["features"] if self.frontend.fixed else batch["features"][:, : lengths.max()]
        return {
            "features": torch.from_numpy(features.astype(np.float32)),
            "lengths": torch.from_numpy(lengths),
            "labels": torch.from_numpy(batch["labels"][:, : label_lengths.max()].astype(np.int64)),
            "label_lengths": torch.from_numpy(label_lengths),
        }

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        return (self._decoder_losses(model, batch) if self._decoder else self._ctc(model, batch)[0]).mean()

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        if self._decoder:
            losses, predicted = self._decoder_losses(model, batch), self._predicted(model, batch)
        else:
            losses, *steps = self._ctc(model, batch)
            predicted = _most_likely(*steps)
        counts = batch["label_lengths"].tolist()
        labels = [row[:count] for row, count in zip(batch["labels"].tolist(), counts, strict=True)]
        return {
            "loss": losses.double().cpu().numpy(),
            "reference": _texts(map(self.frontend.text, labels)),
            "hypothesis": _texts(map(self.frontend.decode, predicted)),
        }

    def _ctc(
        self, model: Forward, batch: dict[str, "torch.Tensor"]
    ) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
        """Each row's loss per label, and the logits and steps of `Frontend.scores`."""
        import torch.nn.functional as F

        logits, lengths = self.frontend.scores(model, batch)
        losses = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            batch["labels"].clamp(min=0),
            lengths,
            batch["label_lengths"],
            blank=self.frontend.blank,
            reduction="none",
        )
        return losses / batch["label_lengths"], logits, lengths

    def _decoder_losses(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        """Each row's loss per label, for a model with a decoder."""
        import torch.nn.functional as F

        logits = cast(Processor, self._decoder).decoder_scores(model, batch)
        losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"], ignore_index=_NO_LABEL, reduction="none")
        return losses.sum(1) / batch["label_lengths"]

    def _predicted(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> list[list[int]]:
        if self._decoder:
            return self._decoder.generate(model, batch["features"], self.state.labels)
        return _most_likely(*self.frontend.scores(model, batch))

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats per label, mean over rows; `wer` and `cer`, error rates of words and characters.

        An error rate exceeds 1 if the hypothesis has more errors than the reference has words or characters.
        """
        import jiwer

        reference, hypothesis = outcomes["reference"].tolist(), outcomes["hypothesis"].tolist()
        return {
            "loss": mean_loss(outcomes),
            "wer": float(jiwer.wer(reference, hypothesis)),
            "cer": float(jiwer.cer(reference, hypothesis)),
        }

    def config_fields(self) -> dict[str, Any]:
        return self._processor.config_fields if self._processor else {}

    def check_pretrained(self, config: Any, directory: Path) -> None:
        if self._processor is None:
            raise DataError(
                f"network.path: the dataset was prepared with `features: {self.spec.features.type}`, which models of "
                f"Transformers do not take. Prepare it with `processor: {directory}`, or use the network conv-lstm.",
                code="processor_missing",
            )
        self._processor.check(config, directory)

    # --- serving

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("audio", "FP32", (-1, -1)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return TensorSpec("text", "BYTES", (-1,)), TensorSpec("duration", "FP32", (-1,))

    def to_inputs(self, row: SpeechRow) -> dict[str, Any]:
        own = self.spec.language
        if row.language and own and row.language.lower() != own.lower():
            raise RequestError(
                f"This model was trained on the language {own!r}, not {row.language!r}.",
                param="language",
                code="invalid_value",
            )
        try:
            return {"audio": audio.decode(row.audio, self.spec.sample_rate, self._max_seconds)}
        except ValueError as error:
            raise RequestError(f"{_sentence(error)}.", param="audio", code="invalid_audio") from error

    def to_answer(self, outputs: Mapping[str, Any]) -> SpeechAnswer:
        duration = round(float(outputs["duration"]), 3)
        return SpeechAnswer(text=outputs["text"], language=self.spec.language, duration=duration)

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`audio` float32 [n, samples], in [-1, 1] at the task's rate → `text`, and `duration` in seconds, [n]."""
        import torch

        clips, rate = inputs["audio"], self.spec.sample_rate
        if not np.isfinite(clips).all():
            raise RequestError("audio holds samples that are not finite.", param="audio", code="invalid_audio")
        try:
            audio.check_length(clips.shape[1], rate, self._max_seconds)
        except ValueError as error:
            message = f"{_sentence(error)}. Samples are counted at {rate} Hz."
            raise RequestError(message, param="audio", code="invalid_audio") from error
        features = np.stack([self.frontend.features(clip) for clip in clips]).astype(np.float32)
        lengths = torch.full((len(clips),), features.shape[1], dtype=torch.int64)
        with torch.inference_mode():
            predicted = self._predicted(model, {"features": torch.from_numpy(features), "lengths": lengths})
        duration = np.full(len(clips), clips.shape[1] / rate, np.float32)
        return {"text": _texts(map(self.frontend.decode, predicted)), "duration": duration}


def _most_likely(logits: "torch.Tensor", lengths: "torch.Tensor") -> list[list[int]]:
    """The most likely label at each step of each row."""
    rows = zip(logits.argmax(-1).tolist(), lengths.tolist(), strict=True)
    return [steps[:length] for steps, length in rows]


def _texts(values: Iterable[str]) -> np.ndarray:
    return np.array(list(values), dtype=object)


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]
