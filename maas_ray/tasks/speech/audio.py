"""Decoding of audio files to mono samples at one rate, and features of speech from samples.

libsndfile decodes, scipy resamples and computes the cosine transform, Transformers the spectra and mel filters. The
features agree with librosa's, as the tests show.
"""

import io
import math
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from maas_ray.errors import InvalidError
from maas_ray.tasks.speech.containers import check_whole_mp3, check_whole_wav, with_length

if TYPE_CHECKING:
    import soundfile

# Common formats whose decoders are fuzzed. libsndfile supports thirty more.
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
MIN_SECONDS = 0.1
_RATES = (1_000, 384_000)
_MAX_PEAK = 16.0  # float files may exceed their full scale of 1 a little, but not as integers in them do
_UNKNOWN_LENGTH = 1 << 60  # libsndfile's length of an OGG file without an end
_MAX_CHANNELS = 16
_BLOCK_FRAMES = 1 << 16  # frames decoded at a time, since a small file can hold gigabytes of silence
_RANGE_DB = 80.0  # librosa's default: quieter values are raised to this far below the loudest
_WINDOW_S, _HOP_S = 0.025, 0.010


def decode(content: bytes, rate: int, max_seconds: float, *, whole: bool = False) -> np.ndarray:
    """An audio file as mono samples, float32 [n] in [-1, 1], at a rate. Channels are averaged.

    Args:
        content: a WAV, FLAC, OGG or MP3 file.
        rate: samples per second of the result.
        max_seconds: maximum length. No more is decoded, whatever the file's header says.
        whole: refuse a file that was cut off. Half a clip is not a clip of its transcript.

    Raises:
        InvalidError: it is not such a file, is empty, too short or too long.
    """
    samples, own_rate = decode_at_own_rate(content, max_seconds, whole=whole)
    check_length(len(samples), own_rate, max_seconds)
    return resampled(samples, own_rate, rate)


def decode_at_own_rate(content: bytes, max_seconds: float, *, whole: bool = False) -> tuple[np.ndarray, int]:
    """Mono samples at the file's own rate, and the rate. A file that is too long is cut one sample above the maximum.

    Raises:
        InvalidError: it is not an audio file of a supported format.
    """
    import soundfile

    if not content:
        raise InvalidError("empty_file", "the audio file is empty (0 bytes)")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            own_rate, frames, mp3 = file.samplerate, file.frames, file.format == "MP3"
            if whole:
                _check_whole(content, file)
            if not mp3 or (complete := with_length(content, frames)) is content:
                samples = _read(file, max_seconds)
            else:
                with soundfile.SoundFile(io.BytesIO(complete)) as longer:
                    samples = _read(longer, max_seconds)
    except soundfile.LibsndfileError as error:
        raise InvalidError(
            "invalid_audio", f"not an audio file of WAV, FLAC, OGG or MP3: {error.error_string}"
        ) from error
    if not np.isfinite(samples).all():
        raise InvalidError("not_finite", "the audio contains samples that are not finite numbers")
    if len(samples) and max(samples.max(), -samples.min()) > _MAX_PEAK:
        raise InvalidError(
            "unknown_range", "the samples are floating point numbers far beyond 1; save it with samples in [-1, 1]"
        )
    return samples, own_rate


def _check_whole(content: bytes, file: "soundfile.SoundFile") -> None:
    if file.format in ("WAV", "WAVEX"):
        check_whole_wav(content)
    elif file.format == "MP3":
        check_whole_mp3(content, file.frames)
    elif file.frames >= _UNKNOWN_LENGTH:
        raise InvalidError("truncated_audio", "the file was cut off: its last page is missing")


def _read(file: "soundfile.SoundFile", max_seconds: float) -> np.ndarray:
    """Mono samples at the file's own rate, up to one more than is allowed."""
    if file.format not in FORMATS:
        raise InvalidError("unsupported_format", f"the audio format is {file.format}; use WAV, FLAC, OGG or MP3")
    low, high = _RATES
    if not low <= file.samplerate <= high:
        raise InvalidError(
            "unsupported_rate", f"the sample rate is {file.samplerate} Hz; it must be from {low:,} to {high:,}"
        )
    if file.channels > _MAX_CHANNELS:
        raise InvalidError(
            "too_many_channels", f"the audio has {file.channels} channels; the maximum is {_MAX_CHANNELS}"
        )
    samples = np.empty(min(file.frames, int(max_seconds * file.samplerate) + 1), np.float32)
    filled = 0
    while filled < len(samples):
        block = file.read(min(_BLOCK_FRAMES, len(samples) - filled), dtype="float32", always_2d=True)
        if not len(block):
            break  # the header announced more samples than there are
        block.mean(axis=1, out=samples[filled : filled + len(block)])
        filled += len(block)
    return samples[:filled]


def check_length(samples: int, rate: int, max_seconds: float) -> None:
    """Return if a clip has an allowed length.

    Raises:
        InvalidError: it is empty, too short or too long.
    """
    if not samples:
        raise InvalidError("empty_clip", "the audio has no samples")
    if samples < MIN_SECONDS * rate:
        raise InvalidError(
            "clip_too_short", f"the audio is {samples / rate:.3f} s long; the minimum is {MIN_SECONDS:g} s"
        )
    if samples > max_seconds * rate:
        raise InvalidError(
            "clip_too_long", f"the audio is longer than {max_seconds:g} s (max_seconds); cut it into shorter clips"
        )


def resampled(samples: np.ndarray, own_rate: int, rate: int) -> np.ndarray:
    """Samples at another rate, float32, by a polyphase filter."""
    if own_rate == rate:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(own_rate, rate)
    return cast(np.ndarray, resample_poly(samples, rate // common, own_rate // common).astype(np.float32))


def frames_in(samples: int, rate: int) -> int:
    """Number of frames of `log_mel` and `mfcc`."""
    return 1 + samples // round(_HOP_S * rate)


def log_mel(samples: np.ndarray, rate: int, bins: int) -> np.ndarray:
    """Mel spectrogram in decibels, float32 [frames, bins]: windows of 25 ms, every 10 ms, 80 dB of range."""
    return np.ascontiguousarray(_decibels(samples, rate, bins).T)


def mfcc(samples: np.ndarray, rate: int, bins: int, coefficients: int) -> np.ndarray:
    """Mel-frequency cepstral coefficients (Davis and Mermelstein 1980), float32 [frames, coefficients]."""
    from scipy.fft import dct

    spectrum = dct(_decibels(samples, rate, bins), axis=0, type=2, norm="ortho")
    return np.ascontiguousarray(spectrum[:coefficients].T, np.float32)


def _decibels(samples: np.ndarray, rate: int, bins: int) -> np.ndarray:
    from transformers.audio_utils import spectrogram

    length = 2 * round(_WINDOW_S * rate / 2)  # even, so that frames can be centred
    decibels = spectrogram(
        samples,
        _window(length),
        frame_length=length,
        hop_length=round(_HOP_S * rate),
        power=2.0,
        mel_filters=_filters(rate, length, bins),
        log_mel="dB",
        db_range=_RANGE_DB,
    )
    return cast(np.ndarray, decibels)


@cache
def _window(length: int) -> Any:
    from transformers.audio_utils import window_function

    return window_function(length, "hann")


@cache
def _filters(rate: int, length: int, bins: int) -> Any:
    from transformers.audio_utils import mel_filter_bank

    return mel_filter_bank(length // 2 + 1, bins, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
