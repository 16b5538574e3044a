"""`/v1/audio/transcriptions`, answered within one process."""

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from maas_ray.errors import RequestError
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.openai.transcriptions import Transcript, TranscriptionBody
from maas_ray.serve.api.predict import parse_rows
from maas_ray.serve.routes import Route
from tests.support import speech
from tests.support.bundles import image_task
from tests.support.models import InProcess, send

LIMIT = 200_000
TASKS = {"asr": speech.speech_task(), "any": speech.speech_task(language=None), "img": image_task()}
CLIP = speech.file_of(speech.spoken("one two"))


class SpeechModels(InProcess):
    """Speech models that hear the same in every file that they can decode."""

    def __init__(self) -> None:
        super().__init__(tasks=TASKS)
        self.seconds = 0.0

    def outputs(self, route: Route, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        (row,) = rows
        self.seconds = len(row["audio"]) / speech.RATE
        return [{"text": "one zwölf", "duration": np.float32(self.seconds)}]


MODELS = SpeechModels()


def request(method: str, path: str, **content: Any) -> httpx.Response:
    return send(create_app(MODELS, body_limit=LIMIT), method, path, **content)


def ask(files: Any = None, **fields: Any) -> httpx.Response:
    files = {"file": ("clip.wav", CLIP)} if files is None else files
    return request("POST", "/v1/audio/transcriptions", files=files, data={"model": "asr"} | fields)


def test_a_clip_is_transcribed_in_every_shape() -> None:
    seconds = len(speech.spoken("one two")) / speech.RATE
    end = f"00:00:00{{}}{round(seconds * 1000):03}"
    answer = ask()
    assert answer.status_code == 200
    assert answer.json() == {"text": "one zwölf", "usage": {"type": "duration", "seconds": pytest.approx(seconds)}}
    text = ask(response_format="text")
    assert (text.text, text.headers["content-type"]) == ("one zwölf\n", "text/plain; charset=utf-8")
    verbose = (ask(response_format="verbose_json", **{"timestamp_granularities[]": "segment"})).json()
    assert (verbose["language"], verbose["duration"], verbose["task"]) == ("en", pytest.approx(seconds), "transcribe")
    (segment,) = verbose["segments"]
    assert (segment["text"], segment["start"], segment["end"]) == ("one zwölf", 0, verbose["duration"])
    srt = (ask(response_format="srt")).text
    assert srt == f"1\n00:00:00,000 --> {end.format(',')}\none zwölf\n\n"
    assert (ask(response_format="vtt")).text == f"WEBVTT\n\n00:00:00.000 --> {end.format('.')}\none zwölf\n\n"
    assert (ask(model="any", response_format="verbose_json")).json()["language"] == "unknown"


def test_subtitle_times_count_hours() -> None:
    body, _ = Transcript("x", None, 3723.5).render("srt")
    assert b"01:02:03,500" in body


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_audio_of_any_rate_and_stereo_is_accepted(rate: int) -> None:
    samples = speech.spoken("three", rate)
    content = speech.file_of(np.stack([samples, samples], 1), rate, format="FLAC")
    assert (ask({"file": ("a.flac", content)})).status_code == 200
    assert MODELS.seconds == pytest.approx(len(samples) / rate, abs=1e-3)


@pytest.mark.parametrize(
    ("files", "fields", "status", "param", "message"),
    [
        ({"file": ("a.wav", b"")}, {}, 400, "file", ""),
        ({"file": ("a.wav", b"\x89PNG")}, {}, 400, "file", "WAV, FLAC, OGG"),
        ({"file": ("a.wav", speech.file_of(speech.tone(6)))}, {}, 400, "file", "5 s"),
        ({"file": ("a.wav", speech.file_of(speech.tone(0.01)))}, {}, 400, "file", "0.010 s"),
        ({"file": ("a.wav", b"0" * LIMIT)}, {}, 413, None, ""),
        ({"other": ("a.wav", CLIP)}, {}, 400, "other", "'other'"),
        ({"file": (None, "text")}, {}, 400, "file", "file=@PATH"),
        (None, {"model": "nobody"}, 404, "model", "nobody"),
        (None, {"model": "img"}, 400, "model", "/v1/models/img/predict"),
        (None, {"model": ""}, 400, "model", "model"),
        (None, {"language": "de"}, 400, "language", "'de'"),
        (None, {"prompt": "Names: Ada"}, 400, "prompt", "'prompt'"),
        (None, {"temperature": "0.5"}, 400, "temperature", "'temperature'"),
        (None, {"temperature": "warm"}, 400, "temperature", "temperature"),
        (None, {"stream": "true"}, 400, "stream", "'stream'"),
        (None, {"response_format": "diarized_json"}, 400, "response_format", "srt"),
        (None, {"timestamp_granularities[]": "segment"}, 400, "timestamp_granularities", "verbose_json"),
        (
            None,
            {"timestamp_granularities[]": ["segment", "word"], "response_format": "verbose_json"},
            400,
            "timestamp_granularities",
            "segment",
        ),
        (None, {"include[]": "logprobs"}, 400, "include", "'include'"),
        (None, {"prompt": ["", ""]}, 400, "prompt", "'prompt'"),
    ],
)
def test_unsupported_transcription_fields_are_refused_by_name(
    files: Any, fields: Any, status: int, param: str | None, message: str
) -> None:
    answer = ask(files, **fields)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(
    ("content_type", "content", "code"),
    [
        ("application/json", b'{"model": "asr"}', "invalid_form"),
        ("multipart/form-data", b"--x--\r\n", "invalid_form"),
        ("multipart/form-data; boundary=x", b"--x\r\n", "invalid_form"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nasr\r\n--x--\r\n',
            "missing_required_parameter",
        ),
    ],
)
def test_a_body_that_is_not_a_transcription_form_is_refused(content_type: str, content: bytes, code: str) -> None:
    headers = {"content-type": content_type}
    answer = request("POST", "/v1/audio/transcriptions", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_transcription_fields_that_change_nothing_are_accepted() -> None:
    assert (ask(temperature="0", prompt="", stream="false", language="EN")).status_code == 200
    assert (ask(model="any", language="de")).status_code == 200


def test_the_audio_file_is_forwarded_unchanged() -> None:
    for content in (b"", b"\r\n--", bytes(range(256)) * 100):
        body = TranscriptionBody(file=content, model="asr", language="en").to_rows()
        try:
            row = parse_rows(body, TASKS["asr"]).rows[0]
        except RequestError as error:
            pytest.fail(str(error))
        assert (row.audio, row.language) == (content, "en")  # type: ignore[attr-defined]


def test_speech_models_are_listed_and_refuse_completions() -> None:
    assert [card["id"] for card in request("GET", "/v1/models").json()["data"]] == ["any", "asr"]
    assert request("GET", "/v1/models/asr").json()["id"] == "asr"
    assert request("GET", "/v1/models/img").json() == {"name": "img", "ready": True}  # not a model of this API
    refused = request("POST", "/v1/completions", json={"model": "asr", "prompt": "a"})
    assert "/v1/audio/transcriptions" in refused.json()["error"]["message"]
