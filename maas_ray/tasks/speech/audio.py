"""Sound as tasks take it: an audio file to mono samples at one rate, and samples to the features of speech.

Files are decoded by libsndfile, resampled by scipy; spectra and mel filters are Transformers', the cosine transform is
scipy's. They agree with librosa's, which the tests show. Knows nothing of what is said.
"""

import io
import math
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import soundfile

# What is commonly sent, each decoded by code that is fuzzed; libsndfile knows thirty more.
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
SHORTEST_S = 0.1
_RATES = (1_000, 384_000)
_MOST_CHANNELS = 16
_BLOCK_FRAMES = 1 << 16  # decoded at a time: of silence a small file holds gigabytes, all channels together
_RANGE_DB = 80.0  # librosa's default: what is quieter than the loudest by more than this is as quiet as this
_WINDOW_S, _HOP_S = 0.025, 0.010


def decode(content: bytes, rate: int, longest_s: float) -> np.ndarray:
    """An audio file's bytes as mono samples, float32 [n] in [-1, 1], at a rate. Channels are averaged.

    Args:
        content: a WAV, FLAC, OGG or MP3 file.
        rate: samples a second of the result.
        longest_s: seconds of the longest that is taken. No more than that is decoded, whatever the file's header says.

    Raises:
        ValueError: it is no such file, holds no sound, or is too short or too long; says which.
    """
    samples, own_rate = decode_at_own_rate(content, longest_s)
    check_length(len(samples), own_rate, longest_s)
    return resampled(samples, own_rate, rate)


def decode_at_own_rate(content: bytes, longest_s: float) -> tuple[np.ndarray, int]:
    """Likewise, but at the rate that the file has, which is given too; however short. A longer one is a sample longer.

    Raises:
        ValueError: it is no such file; says how.
    """
    import soundfile

    if not content:
        raise ValueError("the audio file is empty (0 bytes)")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            samples, own_rate = _read(file, longest_s), file.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(f"not an audio file of WAV, FLAC, OGG or MP3: {error.error_string}") from error
    if not np.isfinite(samples).all():
        raise ValueError("it holds samples that are not finite numbers")
    return samples, own_rate


def _read(file: "soundfile.SoundFile", longest_s: float) -> np.ndarray:
    """Mono samples at the file's own rate: all of them, or a little more than are allowed."""
    if file.format not in FORMATS:
        raise ValueError(f"its format is {file.format}; give WAV, FLAC, OGG or MP3")
    low, high = _RATES
    if not low <= file.samplerate <= high:
        raise ValueError(f"its sample rate is {file.samplerate} Hz; give one from {low:,} to {high:,}")
    if file.channels > _MOST_CHANNELS:
        raise ValueError(f"it has {file.channels} channels; give {_MOST_CHANNELS} at most")
    samples = np.empty(min(file.frames, int(longest_s * file.samplerate) + 1), np.float32)
    filled = 0
    while filled < len(samples):
        block = file.read(min(_BLOCK_FRAMES, len(samples) - filled), dtype="float32", always_2d=True)
        if not len(block):
            break  # the header promised more
        block.mean(axis=1, out=samples[filled : filled + len(block)])
        filled += len(block)
    return samples[:filled]


def check_length(samples: int, rate: int, longest_s: float) -> None:
    """Return if so many samples are a clip of a length that is taken.

    Raises:
        ValueError: there are none, too few or too many.
    """
    if not samples:
        raise ValueError("it holds no samples")
    if samples < SHORTEST_S * rate:
        raise ValueError(f"it is {samples / rate:.3f} s long; give {SHORTEST_S:g} s at least")
    if samples > longest_s * rate:
        raise ValueError(f"it is longer than {longest_s:g} s (max_seconds); cut it into shorter clips")


def resampled(samples: np.ndarray, own_rate: int, rate: int) -> np.ndarray:
    """Samples at another rate, float32, by a polyphase filter."""
    if own_rate == rate:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(own_rate, rate)
    return cast(np.ndarray, resample_poly(samples, rate // common, own_rate // common).astype(np.float32))


def frames_in(samples: int, rate: int) -> int:
    """How many frames `log_mel` and `mfcc` give."""
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

    length = 2 * round(_WINDOW_S * rate / 2)  # an odd one has no middle to centre a frame on
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
