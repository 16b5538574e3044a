"""Speech recognition: rows, the platform's own network, and requests."""

import base64
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch

from maas_ray.errors import InvalidError, RequestError, SpecError
from maas_ray.tasks import load_task
from maas_ray.tasks.speech import audio
from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognition
from maas_ray.tasks.speech.requests import SpeechRow
from tests.support import speech
from tests.support.errors import raises
from tests.support.recognition import CLIPS, SMALL, learned, measured, rows_of, saved, spec_of


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
