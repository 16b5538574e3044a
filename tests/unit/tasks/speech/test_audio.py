"""Clips of every format are decoded within bounds, and their features are those of other libraries."""

import tracemalloc
from typing import Any

import librosa
import numpy as np
import pytest
import scipy.fft
import torch

from maas_ray.errors import InvalidError
from maas_ray.tasks.speech import audio
from tests.support import speech
from tests.support.errors import raises


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("bins", [40, 80])
def test_features_agree_with_librosa_torch_and_scipy(rate: int, bins: int) -> None:
    """To 1e-3 dB; values are between -100 and 100.

    Filters are librosa's, spectra torch's and the cosine transform SciPy's, put together as in librosa's
    `melspectrogram`, `power_to_db` and `mfcc`. Those would compile for half a minute.
    """
    samples = speech.spoken("one seven", rate) + 0.01 * np.random.default_rng(0).standard_normal(1).astype(np.float32)
    window, hop = 2 * round(0.0125 * rate), round(0.01 * rate)
    hann = torch.hann_window(window, dtype=torch.float64)
    exact = torch.from_numpy(samples).double()
    spectrum = torch.stft(exact, window, hop, window=hann, pad_mode="reflect", return_complex=True)
    power = librosa.filters.mel(sr=rate, n_fft=window, n_mels=bins) @ spectrum.abs().square().numpy()
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    decibels = np.maximum(decibels, decibels.max() - 80)

    found = audio.log_mel(samples, rate, bins)
    assert found.shape == (audio.frames_in(len(samples), rate), bins)
    np.testing.assert_allclose(found, decibels.T, atol=1e-3)
    coefficients = scipy.fft.dct(decibels, axis=0, norm="ortho")[:13]
    np.testing.assert_allclose(audio.mfcc(samples, rate, bins, 13), coefficients.T, atol=1e-3)


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7),
        ("FLAC", "PCM_16", 1e-4),
        ("FLAC", "PCM_24", 1e-6),
        ("OGG", "VORBIS", 0.1),
        ("MP3", "MPEG_LAYER_III", 0.1),
    ],
)
def test_files_of_every_kind_are_decoded(format: str, subtype: str, tolerance: float) -> None:
    samples = speech.tone(0.5)
    found = audio.decode(speech.file_of(samples, format=format, subtype=subtype), speech.RATE, 10)
    assert found.dtype == np.float32
    assert len(found) == pytest.approx(len(samples), abs=2000 if format == "MP3" else 0)
    np.testing.assert_allclose(found[1000:7000], samples[1000:7000], atol=tolerance)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_clips_of_other_rates_and_channels_decode_to_the_same_sound(rate: int) -> None:
    own = speech.tone(0.5, rate)
    stereo = np.stack([own * 1.5, own * 0.5], axis=1)
    found = audio.decode(speech.file_of(stereo, rate, subtype="FLOAT"), speech.RATE, 10)
    expected = speech.tone(0.5)
    assert len(found) == pytest.approx(len(expected), abs=1)
    np.testing.assert_allclose(found[200:7800], expected[200:7800], atol=5e-3)


def _headed(samples: np.ndarray, frames: int) -> bytes:
    """A WAV whose header promises more frames than there are."""
    content = bytearray(speech.file_of(samples))
    content[40:44] = (2 * frames).to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "code", "named"),
    [
        (b"", "empty_file", ()),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 100, "invalid_audio", ("WAV, FLAC, OGG or MP3",)),
        (b"{}" * 50, "invalid_audio", ()),
        (speech.file_of(np.zeros(0, np.float32)), "empty_clip", ()),
        (speech.file_of(speech.tone(0.05)), "clip_too_short", ("0.050 s", "0.1 s")),
        (speech.file_of(speech.tone(3)), "clip_too_long", ("2 s", "max_seconds")),
        (speech.file_of(np.zeros((8000, 17), np.float32)), "too_many_channels", (17,)),
        (speech.file_of(speech.tone(1, 500), 500), "unsupported_rate", ("500 Hz",)),
        (speech.file_of(speech.tone(1), format="AIFF"), "unsupported_format", ("AIFF",)),
        (speech.file_of(np.full(8000, np.nan, np.float32), subtype="FLOAT"), "not_finite", ()),
    ],
    ids=["empty", "png", "json", "no-samples", "short", "long", "channels", "rate", "aiff", "nan"],
)
def test_a_file_that_is_not_a_usable_clip_is_refused(content: bytes, code: str, named: tuple[Any, ...]) -> None:
    with raises(InvalidError, code, *named):
        audio.decode(content, speech.RATE, 2)


def test_decoding_is_bounded_whatever_the_header_announces() -> None:
    assert len(audio.decode(_headed(speech.tone(0.5), 1 << 29), speech.RATE, 2)) == 8000
    silence = speech.file_of(np.zeros(600 * 8000, np.float32), 8000, format="FLAC")
    assert len(silence) < 200_000
    with raises(InvalidError, "clip_too_long", "2 s"):
        audio.decode(silence, speech.RATE, 2)


def test_memory_of_decoding_does_not_depend_on_channels_and_rate() -> None:
    """Silence in eight channels at 384 kHz: 25 MB a second and more decoded whole, from a file of kilobytes."""
    content = speech.file_of(np.zeros((2 * 384_000, 8), np.int16), 384_000, format="FLAC")
    assert len(content) < 20_000
    audio.decode(content, speech.RATE, 2)  # a first call, since imports and caches take memory, too
    tracemalloc.start()
    try:
        samples = audio.decode(content, speech.RATE, 2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(samples) == 2 * speech.RATE
    assert peak < 3 * (2 * 384_000) * 4


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_decoding_block_by_block_gives_the_whole_clip(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (3 * speech.RATE, 2)).astype(np.float32)
    content = speech.file_of(noise, format=format)
    whole = audio.decode(content, speech.RATE, 4)
    monkeypatch.setattr(audio, "_BLOCK_FRAMES", 1000)
    np.testing.assert_allclose(audio.decode(content, speech.RATE, 4), whole, atol=1e-6)
