"""Speech models of Transformers are trained further and load there again."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maas_ray.errors import DataError, InvalidError, RequestError
from maas_ray.tasks import load_task
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognition
from tests.support import speech
from tests.support.errors import raises
from tests.support.recognition import CLIPS, SMALL, learned, measured, rows_of, saved, spec_of


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
