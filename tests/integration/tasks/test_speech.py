"""Spoken digits from clips to an endpoint that OpenAI's client asks."""

import base64
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from maas_ray import DeploySpec, EvaluateSpec, PrepareSpec, TrainSpec, deploy, evaluate, prepare, train
from maas_ray.registry.versions import ModelVersion
from maas_ray.sample_data.speech import write_clips
from maas_ray.settings import Settings
from maas_ray.tasks.speech import audio
from tests.support import ROOT, speech
from tests.support.deployments import undeploy_all

CLIPS = 500

pytestmark = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng speaks the clips")


@dataclass(frozen=True)
class Heard:
    version: ModelVersion
    clips: Path


@pytest.fixture(scope="module")
def heard(cluster: str, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Heard:
    clips = tmp_path_factory.mktemp("clips")
    write_clips(clips, clips=CLIPS, max_words=2)
    (clips / "picture.wav").write_bytes(b"\x89PNG\r\n\x1a\n")
    (clips / "picture.txt").write_text("one")
    (clips / "hurried.wav").write_bytes(speech.file_of(np.random.default_rng(0).standard_normal(3200) / 9))
    (clips / "hurried.txt").write_text("one two three")
    (clips / "00000.txt").unlink()
    specs = ROOT / "jobs/specs"
    dataset = prepare(
        PrepareSpec.from_yaml(
            specs / "spoken-digits-prepare.yaml", overrides=[f"sources=[{{format: audio-folder, path: {clips}}}]"]
        ),
        settings=settings,
    )
    counts = dataset.meta.counts
    assert counts.read == CLIPS + 2
    assert counts.quarantined == 2  # the picture, and the clip that has lost its transcript
    assert [reason for reason in counts.dropped if "more labels than" in reason]
    assert sum(counts.kept.values()) + counts.duplicates == CLIPS - 1
    version = train(TrainSpec.from_yaml(specs / "spoken-digits-train.yaml", overrides=["epochs=10"]), settings=settings)
    return Heard(version, clips)


def deployed(heard: Heard, settings: Settings, **changes: object) -> str:
    return deploy(DeploySpec.parse({"version": heard.version.reference, **changes}), settings=settings).url


@pytest.fixture(scope="module")
def url(heard: Heard, settings: Settings) -> Iterator[str]:
    yield deployed(heard, settings, resources={"cpus": 0.5}, scaling={"max_replicas": 1})
    undeploy_all(settings)


def test_a_recogniser_transcribes_clips_it_was_not_trained_on(heard: Heard, settings: Settings) -> None:
    metrics = evaluate(
        EvaluateSpec(version=heard.version.reference, resamples=20, split="test"), settings=settings
    ).metrics
    assert metrics.keys() == {"loss", "wer", "cer"}
    assert metrics["wer"] < 0.4
    assert metrics["cer"] < metrics["wer"]
    assert heard.version.metrics["validation/wer"] < 0.4


def test_openais_client_gets_the_transcript(heard: Heard, url: str) -> None:
    from openai import BadRequestError, OpenAI

    rows = [(path, path.with_suffix(".txt").read_text().strip()) for path in sorted(heard.clips.glob("000[1-4]?.wav"))]
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["spoken-digits"]
        texts = {}
        for path, _ in rows:
            with path.open("rb") as file:
                texts[path] = client.audio.transcriptions.create(model="spoken-digits", file=file).text
        right = sum(texts[path] == said for path, said in rows)
        assert right > 0.6 * len(rows)

        path = rows[0][0]
        samples, rate = soundfile.read(path, dtype="float32")
        other = audio.resampled(samples, rate, 44_100)
        stereo = speech.file_of(np.stack([other, other], 1), 44_100, format="FLAC")
        verbose = client.audio.transcriptions.create(
            model="spoken-digits",
            file=("clip.flac", stereo),
            response_format="verbose_json",
            language="en",
            timestamp_granularities=["segment"],
        )
        assert verbose.text == texts[path]
        assert verbose.duration == pytest.approx(len(samples) / rate, abs=0.01)
        assert verbose.segments is not None
        assert (verbose.language, verbose.segments[0].text) == ("en", texts[path])
        asked = {"model": "spoken-digits", "file": ("clip.flac", stereo)}
        assert client.audio.transcriptions.create(**asked, response_format="text") == f"{texts[path]}\n"
        with pytest.raises(BadRequestError, match="empty"):
            client.audio.transcriptions.create(model="spoken-digits", file=("clip.wav", b""))
        with pytest.raises(BadRequestError, match="Not an audio file"):
            client.audio.transcriptions.create(model="spoken-digits", file=("clip.wav", b"\x89PNG"))


def test_predict_and_the_open_inference_protocol_say_the_same(heard: Heard, url: str) -> None:
    content = (heard.clips / "00007.wav").read_bytes()
    path = f"{url}/v1/models/spoken-digits/predict"
    form = httpx.post(path, files={"file": ("clip.wav", content)}, timeout=60).json()
    row = httpx.post(path, json={"audio": base64.b64encode(content).decode()}, timeout=60).json()
    assert form == row
    assert row["duration"] == pytest.approx(len(audio.decode(content, 16_000, 10)) / 16_000, abs=1e-3)

    samples = audio.decode(content, 16_000, 10)
    tensor = {"name": "audio", "datatype": "FP32", "shape": [1, len(samples)], "data": samples.tolist()}
    answer = httpx.post(f"{url}/v2/models/spoken-digits/infer", json={"inputs": [tensor]}, timeout=60).json()
    assert {output["name"]: output["data"][0] for output in answer["outputs"]}["text"] == row["text"]
    several = httpx.post(
        path, json={"instances": [{"audio": base64.b64encode(content).decode()}, {"audio": ""}]}, timeout=60
    )
    assert several.status_code == 400
    assert several.json()["error"]["param"] == "instances[1].audio"


def test_shared_replicas_give_the_same_transcripts(heard: Heard, url: str, settings: Settings) -> None:
    path, content = f"{url}/v1/models/spoken-digits/predict", (heard.clips / "00007.wav").read_bytes()
    said = httpx.post(path, files={"file": ("clip.wav", content)}, timeout=60).json()["text"]
    deployed(heard, settings, replicas="shared")
    form = {"files": {"file": ("clip.wav", content)}, "data": {"model": "spoken-digits"}}
    answer = httpx.post(f"{url}/v1/audio/transcriptions", **form, timeout=60)
    assert answer.json()["text"] == said
