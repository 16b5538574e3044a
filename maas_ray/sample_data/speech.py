"""Samples of spoken digits: each clip is a `.wav` file with a transcript beside it.

The synthesizer espeak-ng speaks them: six English accents by twelve voices, at varied speed and pitch, with noise. The
same arguments give the same clips with the same version of espeak-ng.
"""

import io
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from maas_ray.errors import DataError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029")
VOICES = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")
_SPEED, _PITCH, _NOISE_DB, _LOUDNESS = (110, 190), (20, 80), (15, 40), (0.2, 0.9)


def spoken_digits(directory: Path) -> Path:
    """1,200 clips of one to three English digits, by twelve synthetic voices, with noise. Needs espeak-ng. WAV."""
    write_clips(directory / "spoken-digits", clips=1200)
    return directory / "spoken-digits"


def write_clips(directory: Path, *, clips: int, max_words: int = 3, seed: int = 0, threads: int = 2) -> None:
    """Write clips of 1 to `max_words` digits into a directory.

    Raises:
        DataError: espeak-ng is not installed.
    """
    if shutil.which("espeak-ng") is None:
        raise DataError(
            "espeak-ng is not installed, but speaks the clips. On Debian: apt-get install espeak-ng",
            code="program_missing",
        )
    directory.mkdir(parents=True, exist_ok=True)
    # Each clip has its own random generator, so that a smaller sample is the beginning of a larger one.
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda number: _write(directory, number, max_words, seed), range(clips)))


def _write(directory: Path, number: int, max_words: int, seed: int) -> None:
    random = np.random.default_rng([seed, number])
    words = " ".join(random.choice(WORDS, size=random.integers(1, max_words + 1)))
    samples, rate = _spoken(words, random)
    import soundfile

    path = directory / f"{number:05d}.wav"
    soundfile.write(path, _recorded(samples, random), rate, subtype="PCM_16")
    path.with_suffix(".txt").write_text(words + "\n", encoding="utf-8")


def _spoken(words: str, random: np.random.Generator) -> tuple[np.ndarray, int]:
    voice = f"{random.choice(ACCENTS)}+{random.choice(VOICES)}"
    speed, pitch = (str(random.integers(low, high + 1)) for low, high in (_SPEED, _PITCH))
    command = ["espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "--stdout", words]
    spoken = subprocess.run(command, check=True, capture_output=True)
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(spoken.stdout), dtype="float32")
    return samples, rate


def _recorded(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Samples at a random loudness, with noise."""
    loud = samples / max(np.abs(samples).max(), 1e-6) * random.uniform(*_LOUDNESS)
    noise = random.standard_normal(len(loud)) * np.sqrt(np.mean(loud**2)) * 10 ** (-random.uniform(*_NOISE_DB) / 20)
    recorded: np.ndarray = np.clip(loud + noise, -1, 1).astype(np.float32)
    return recorded
