"""Files of sound are read to their end, or refused: libsndfile would read a part of them in silence."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile

from maas_ray.errors import InvalidError
from maas_ray.tasks.speech import audio
from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognitionSpec
from tests.support.errors import raises
from tests.support.speech import tone

SECONDS = 6


def written(rate: int = 16_000, channels: int = 1, **options: Any) -> bytes:
    """Noise and silence: frames of a variable bit rate differ in size."""
    noise = 0.3 * np.random.default_rng(0).normal(size=2 * rate).clip(-1, 1)
    samples = np.concatenate([noise, np.zeros((SECONDS - 2) * rate)])
    data = io.BytesIO()
    with soundfile.SoundFile(data, "w", rate, channels, **options) as file:
        file.write(np.stack([samples] * channels, 1))
    return data.getvalue()


def variable(rate: int = 16_000, channels: int = 1) -> bytes:
    return written(rate, channels, format="MP3", bitrate_mode="VARIABLE", compression_level=0.9)


def without_length(content: bytes) -> bytes:
    """An MP3 file without its first frame, whose header `Xing` says how long the file is."""
    return content[content.index(content[:2], content.index(b"Xing")) :]


def seconds(content: bytes, *, whole: bool = True) -> float:
    samples, rate = audio.decode_at_own_rate(content, 60, whole=whole)
    return len(samples) / rate


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 1), (24_000, 2), (44_100, 2), (48_000, 1)])
def test_an_mp3_of_unknown_length_is_read_to_its_end(rate: int, channels: int) -> None:
    content = variable(rate, channels)
    tagged = b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + without_length(content) + b"TAG" + bytes(125)

    assert seconds(content) == SECONDS
    for unknown in (without_length(content), tagged):
        assert seconds(unknown) == pytest.approx(SECONDS, abs=0.15)  # the encoder's delay is not cut off
        assert soundfile.info(io.BytesIO(unknown)).duration < SECONDS / 2  # the guess of libsndfile
    assert seconds(content + content) == pytest.approx(2 * SECONDS, abs=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"format": "WAV"},
        {"format": "WAV", "subtype": "FLOAT"},
        {"format": "WAVEX", "subtype": "PCM_24"},
        {"format": "OGG"},
        {"format": "MP3", "bitrate_mode": "VARIABLE"},
        {"format": "FLAC"},
    ],
)
def test_a_clip_that_was_cut_off_is_not_the_clip_of_its_transcript(options: dict[str, Any]) -> None:
    content = written(**options)
    assert seconds(content) == pytest.approx(SECONDS, abs=0.01)

    spec = AutomaticSpeechRecognitionSpec()
    with raises(InvalidError, "invalid_audio" if options["format"] == "FLAC" else "truncated_audio"):
        spec.parse_row({"audio": content[: len(content) * 3 // 4], "transcript": "noise"})
    if options["format"] == "WAV":
        assert seconds(content[: len(content) // 2], whole=False) < SECONDS  # a request gets what there is


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_from_a_pipe_is_whole(size: int) -> None:
    content = bytearray(written(format="WAV"))
    content[40:44] = size.to_bytes(4, "little")
    assert seconds(bytes(content)) == SECONDS


def test_integers_in_a_file_of_floats_are_of_unknown_range() -> None:
    for peak, known in ((2.0, True), (32768.0, False)):
        data = io.BytesIO()
        soundfile.write(data, tone(1) * peak, 16_000, format="WAV", subtype="FLOAT")
        if known:
            assert seconds(data.getvalue()) == 1
        else:
            with raises(InvalidError, "unknown_range"):
                seconds(data.getvalue())
