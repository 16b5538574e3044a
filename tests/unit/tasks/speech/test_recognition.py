import base64
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jiwer
import librosa
import numpy as np
import pytest
import scipy.fft
import torch
from safetensors.torch import save_file

from maas_ray.errors import DataError, InvalidError, RequestError, SpecError
from maas_ray.tasks import load_task
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.speech import audio
from maas_ray.tasks.speech.networks import ConvLstm
from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognition, AutomaticSpeechRecognitionSpec
from maas_ray.tasks.speech.requests import SpeechRow
from tests.support import speech
from tests.support.errors import raises

CLIPS = [
    "one two", "three", "four five six", "seven eight", "nine zero", "two two", "one three", "zero", "six", "five seven"
]  # fmt: skip
SMALL = ConvLstm(channels=64, hidden_size=64, layers=1, dropout=0)


def spec_of(**fields: Any) -> AutomaticSpeechRecognitionSpec:
    return AutomaticSpeechRecognitionSpec.parse(fields, source="test")


def rows_of(spec: AutomaticSpeechRecognitionSpec, clips: list[str] = CLIPS) -> list[dict[str, Any]]:
    raw = [{"audio": speech.file_of(speech.spoken(words)), "transcript": words} for words in clips]
    return [row for one in raw if (row := spec.parse_row(one))]


@pytest.fixture(scope="module")
def task() -> AutomaticSpeechRecognition:
    spec = spec_of(language="en")
    return spec.fit(rows_of(spec))


def learned(task: AutomaticSpeechRecognition, network: Any, rows: list[dict[str, Any]], steps: int, rate: float) -> Any:
    torch.set_num_threads(1)  # threads that wait for each other take most of the time, where other programs run
    torch.manual_seed(0)
    model = network.build(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    batch = task.collate(task.encode(rows))
    for _ in range(steps):
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def saved(task: AutomaticSpeechRecognition, network: Any, model: Any, directory: Path) -> Path:
    """A bundle, as the export writes it."""
    directory.mkdir()
    task.save(directory)
    network.write_config(model, task, directory)
    tied = set(getattr(model, "all_tied_weights_keys", ()))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def measured(task: AutomaticSpeechRecognition, model: Any, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        return task.outcomes(model, task.collate(task.encode(rows)))


# --- sound -----------------------------------------------------------------------------------------


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


# --- rows ------------------------------------------------------------------------------------------


def test_a_clip_and_its_transcript_are_parsed_and_normalised() -> None:
    content = speech.file_of(speech.tone(0.5))
    row = spec_of().parse_row({"audio": content, "transcript": b"\xef\xbb\xbfOne \n Two\n"})
    assert row is not None
    assert (row["transcript"], row["audio"].shape, row["audio"].dtype) == ("one two", (8000,), np.float32)
    assert spec_of(case="upper").parse_row({"audio": content, "transcript": "One"})["transcript"] == "ONE"  # type: ignore[index]
    assert spec_of().parse_row({"audio": content, "transcript": " \n"}) is None
    assert spec_of().parse_row({"audio": None, "transcript": "one"}) is None
    with raises(InvalidError, "wrong_type", "transcript", "int"):
        spec_of().parse_row({"audio": content, "transcript": 3})
    with raises(InvalidError, "empty_file"):
        spec_of().parse_row({"audio": b"", "transcript": "one"})


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        (
            {"features": {"type": "mfcc", "bins": 20, "coefficients": 30}},
            "too_many_coefficients",
            ("coefficients (30)", "bins (20)"),
        ),
        ({"features": {"type": "mfcc"}, "processor": "somewhere"}, "conflicting_fields", ("features", "processor")),
        ({"sample_rate": 100}, "greater_than_equal", ("sample_rate",)),
    ],
)
def test_a_spec_that_cannot_work_is_refused(fields: dict[str, Any], code: str, named: tuple[str, ...]) -> None:
    with raises(SpecError, code, *named):
        spec_of(**fields)


def test_rows_that_cannot_be_trained_on_are_dropped_with_a_reason(task: AutomaticSpeechRecognition) -> None:
    clip = speech.spoken("one")
    for row, code, named in (
        ({"audio": clip, "transcript": "öne"}, "not_in_training", "'ö'"),
        ({"audio": clip, "transcript": "one two three four"}, "transcript_too_long", "transcript"),
        ({"audio": clip, "transcript": "one " * 20}, "not_in_training", "the transcript is"),
        ({"audio": speech.spoken("one " * 12), "transcript": "one"}, "not_in_training", "the clip is"),
    ):
        with raises(InvalidError, code, named):
            task.encode([row])


def test_no_row_that_is_kept_has_an_infinite_loss(task: AutomaticSpeechRecognition) -> None:
    """The shortest clip that a transcript fits into, by `encode`, is one that CTC can write it in."""
    model = SMALL.build(task)
    for text in ("two two", "three"):
        kept = []
        for samples in range(1600, 16_000, 160):
            row = {"audio": np.random.default_rng(0).standard_normal(samples).astype(np.float32), "transcript": text}
            try:
                kept.append(task.encode([row]))
            except ValueError:
                assert not kept
        needs = len(text) + sum(a == b for a, b in pairwise(text))
        assert kept[0]["length"][0] == 4 * (needs - 1) + 1
        assert torch.isfinite(task.loss(model, task.collate(kept[0])))


# --- the platform's own network --------------------------------------------------------------------


@pytest.mark.parametrize("features", [{"type": "log-mel"}, {"type": "mfcc", "coefficients": 16}])
def test_a_network_learns_and_is_the_same_in_a_bundle(features: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of(features=features)
    rows = rows_of(spec)
    task = spec.fit(rows)
    model = learned(task, SMALL, rows, 100, 1e-2)

    outcomes = measured(task, model, rows)
    found = task.metrics(outcomes)
    assert found["wer"] < 0.2
    assert outcomes["reference"].tolist() == CLIPS
    assert found["wer"] == jiwer.wer(CLIPS, outcomes["hypothesis"].tolist())
    assert found["loss"] == pytest.approx(outcomes["loss"].mean())

    directory = saved(task, SMALL, model, tmp_path / "bundle")
    again = load_task(directory)
    clip = np.stack([rows[0]["audio"]] * 2)
    answer = again.predict(again.load_model(directory), {"audio": clip})
    assert answer["text"].tolist() == [outcomes["hypothesis"][0]] * 2
    assert answer["duration"] == pytest.approx(len(clip[0]) / speech.RATE)


def test_padding_does_not_change_a_row(task: AutomaticSpeechRecognition) -> None:
    rows = rows_of(task.spec)
    model = SMALL.build(task).eval()
    together = measured(task, model, rows)
    for place, row in enumerate(rows):
        alone = measured(task, model, [row])
        assert alone["loss"][0] == pytest.approx(together["loss"][place], abs=1e-4)
        assert alone["hypothesis"][0] == together["hypothesis"][place]


def test_a_recogniser_computes_in_16_bits(task: AutomaticSpeechRecognition) -> None:
    model = SMALL.build(task).bfloat16()
    loss = task.loss(model, task.collate(task.encode(rows_of(task.spec))))
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32


def test_requests_are_files_or_samples(task: AutomaticSpeechRecognition) -> None:
    samples = speech.spoken("one two", 44_100)
    content = speech.file_of(np.stack([samples, samples], axis=1), 44_100)
    for sent in (
        content,
        base64.b64encode(content).decode(),
        "data:audio/wav;base64," + base64.b64encode(content).decode(),
    ):
        row = task.to_inputs(SpeechRow(audio=sent, language="EN"))
        assert row["audio"].shape == (audio.decode(content, 16_000, 10).shape)
    model = SMALL.build(task).eval()
    answer = task.predict(model, {"audio": row["audio"][None]})
    told = task.to_answer({name: values[0] for name, values in answer.items()})
    assert (told.language, told.duration) == ("en", pytest.approx(len(samples) / 44_100, abs=1e-3))
    assert isinstance(told.text, str)


@pytest.mark.parametrize(
    ("ask", "code", "named"),
    [
        (lambda task: task.to_inputs(SpeechRow(audio=b"RIFF")), "invalid_audio", ("Not an audio file",)),
        (lambda task: task.to_inputs(SpeechRow(audio=b"")), "invalid_audio", ("empty",)),
        (
            lambda task: task.to_inputs(SpeechRow(audio=speech.file_of(speech.tone(0.5)), language="de")),
            "invalid_value",
            ("'en'", "'de'"),
        ),
        (lambda task: task.predict(None, {"audio": np.zeros((1, 1), np.float32)}), "invalid_audio", ("0.000 s",)),
        (lambda task: task.predict(None, {"audio": np.zeros((1, 0), np.float32)}), "invalid_audio", ("no samples",)),
        (lambda task: task.predict(None, {"audio": np.zeros((1, 500_000), np.float32)}), "invalid_audio", ("30 s",)),
        (lambda task: task.predict(None, {"audio": np.full((1, 8000), np.inf, np.float32)}), "invalid_audio", ()),
    ],
)
def test_a_request_without_a_usable_clip_is_refused(
    task: Any, ask: Callable[[Any], Any], code: str, named: tuple[str, ...]
) -> None:
    with raises(RequestError, code, *named) as caught:
        ask(task)
    assert caught.value.status == 400


# --- models of Transformers ------------------------------------------------------------------------


def test_wav2vec2_is_trained_further_and_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCTC, AutoProcessor

    given = speech.wav2vec2(tmp_path / "given")
    spec = spec_of(processor=str(given), case="upper")
    rows = rows_of(spec)
    task = spec.fit(rows)
    network = Pretrained(path=str(given))
    model = learned(task, network, rows, 5, 1e-3)
    directory = saved(task, network, model, tmp_path / "bundle")
    before = measured(task, network.build(task).eval(), rows)
    after = measured(task, model, rows)
    assert after["loss"].mean() < before["loss"].mean()
    assert after["reference"].tolist() == [words.upper() for words in CLIPS]
    assert task.metrics(after)["wer"] >= 0

    processor, plain = AutoProcessor.from_pretrained(directory), AutoModelForCTC.from_pretrained(directory)
    again = load_task(directory)
    for row in rows[:3]:
        samples = row["audio"]
        answer = again.predict(again.load_model(directory), {"audio": samples[None]})
        with torch.inference_mode():
            logits = plain(**processor(audio=samples, sampling_rate=16_000, return_tensors="pt")).logits
        assert answer["text"][0] == processor.batch_decode(logits.argmax(-1))[0].strip()
        ours, _ = again.frontend.scores(plain, again.collate(again.encode([row])))
        np.testing.assert_allclose(ours.detach().numpy(), logits.numpy(), atol=2e-2)  # features are kept in 16 bits


@pytest.mark.parametrize("masked", [True, False])
def test_a_clip_is_measured_as_transformers_hears_it_alone(masked: bool, tmp_path: Path) -> None:
    """A group norm over time would see the padding of shorter clips in a batch."""
    spec = spec_of(processor=str(speech.wav2vec2(tmp_path / "given", masked=masked)), case="upper")
    rows = rows_of(spec, ["three", "four five six", "one two", "six"])
    task = spec.fit(rows)
    assert task.couples_rows is not masked
    model = Pretrained(path=str(tmp_path / "given")).build(task).eval()
    outcomes = measured(task, model, rows)
    for index, row in enumerate(rows):
        stored = task.collate(task.encode([row]))
        with torch.inference_mode():
            alone = model(input_values=stored["features"], labels=stored["labels"])
        assert outcomes["loss"][index] * stored["labels"].shape[1] == pytest.approx(float(alone.loss), rel=1e-4)


def test_a_model_without_a_vocabulary_gets_that_of_the_transcripts(tmp_path: Path) -> None:
    from transformers import AutoModelForCTC, AutoProcessor

    given = speech.wav2vec2(tmp_path / "given", tokenizer=False)
    spec = spec_of(processor=str(given), case="lower")
    rows = rows_of(spec)
    task = spec.fit(rows)
    network = Pretrained(path=str(given))
    directory = saved(task, network, network.build(task), tmp_path / "bundle")
    processor, plain = AutoProcessor.from_pretrained(directory), AutoModelForCTC.from_pretrained(directory)
    assert plain.config.vocab_size == len(processor.tokenizer) == plain.lm_head.out_features
    assert processor.tokenizer("one two").input_ids == task.frontend.labels("one two")
    assert task.frontend.text(task.frontend.labels("two two")) == "two two"
    assert network.skeleton(task).state_dict().keys() == plain.state_dict().keys()
    with raises(InvalidError, "unknown_character", "'ü'"):
        task.encode([rows[0] | {"transcript": "fünf"}])


def test_whisper_is_trained_further_and_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    given = speech.whisper(tmp_path / "given")
    spec = spec_of(processor=str(given))
    rows = rows_of(spec)
    task = spec.fit(rows)
    network = Pretrained(path=str(given))
    model = learned(task, network, rows, 60, 1e-2)
    outcomes = measured(task, model, rows)
    assert outcomes["reference"].tolist() == CLIPS
    assert task.metrics(outcomes)["wer"] < 0.7

    directory = saved(task, network, model, tmp_path / "bundle")
    processor, plain = AutoProcessor.from_pretrained(directory), AutoModelForSpeechSeq2Seq.from_pretrained(directory)
    again = load_task(directory)
    for row in rows[:3]:
        answer = again.predict(again.load_model(directory), {"audio": row["audio"][None]})
        inputs = processor(audio=row["audio"], sampling_rate=16_000, return_tensors="pt").input_features
        written = plain.generate(inputs, max_new_tokens=task.state.labels, do_sample=False)
        assert answer["text"][0] == processor.batch_decode(written, skip_special_tokens=True)[0].strip()
    with raises(RequestError, "invalid_audio", "2 s"):
        again.predict(None, {"audio": np.zeros((1, 48_000), np.float32)})  # type: ignore[arg-type]


def test_whisper_writes_no_more_tokens_than_it_has_positions(tmp_path: Path) -> None:
    """With the longest possible transcript in training; the prefix before the first word takes positions, too."""
    given = speech.whisper(tmp_path / "given")
    spec = spec_of(processor=str(given))
    rows = [row | {"transcript": "one two " * 40} for row in rows_of(spec, CLIPS[:1])]
    task = spec.fit(rows)
    assert task.state.labels == 64
    model = Pretrained(path=str(given)).build(task).eval()
    clip = {"audio": rows[0]["audio"][None]}
    assert isinstance(task.predict(model, clip)["text"][0], str)

    from transformers import AutoTokenizer

    number = AutoTokenizer.from_pretrained(given).convert_tokens_to_ids
    multilingual = {
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": number("<|en|>")},
        "task_to_id": {"transcribe": number("<|transcribe|>")},
        "no_timestamps_token_id": number("<|notimestamps|>"),
    }
    for name, value in multilingual.items():
        setattr(model.generation_config, name, value)
    told = spec_of(processor=str(given), language="en")
    task = told.fit(rows)
    assert isinstance(task.predict(model, clip)["text"][0], str)


def test_a_model_or_processor_that_does_not_fit_is_refused(task: AutomaticSpeechRecognition, tmp_path: Path) -> None:
    ctc, decoder = speech.wav2vec2(tmp_path / "ctc"), speech.whisper(tmp_path / "decoder")
    with raises(DataError, "processor_missing", f"processor: {ctc}"):
        Pretrained(path=str(ctc)).build(task)
    heard = spec_of(processor=str(ctc), case="upper")
    fitted = heard.fit(rows_of(heard))
    with raises(DataError, "wrong_model_kind", decoder):
        Pretrained(path=str(decoder)).build(fitted)
    with raises(DataError, "wrong_features", "conv-lstm", ctc):
        SMALL.build(fitted)
    with raises(DataError, "wrong_sample_rate", "16000 Hz", "8000"):
        spec_of(processor=str(ctc), sample_rate=8000).fit(rows_of(spec_of(sample_rate=8000)))
    with raises(DataError, "file_missing", "config.json"):
        spec_of(processor=str(tmp_path)).fit(rows_of(spec_of()))
    with raises(DataError, "file_missing", "config.json"):
        spec_of(processor=str(tmp_path)).identity()
    (decoder / "processor_config.json").unlink()
    with raises(DataError, "file_missing", "preprocessor_config.json"):
        spec_of(processor=str(decoder)).fit(rows_of(spec_of()))
    assert spec_of(processor=str(ctc)).identity()["processor"].keys() >= {"vocab.json", "config.json"}


def test_the_generator_says_what_it_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "maas_ray.sample_data", "spoken-digits", str(tmp_path)]
    environment = {"PATH": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "espeak-ng is not installed" in done.stderr
    assert not (tmp_path / "spoken-digits").exists()
