"""Tasks of text from their files to answers, by the specs that users have."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from maas_ray import DeploySpec, EvaluateSpec, PrepareSpec, TrainSpec, deploy, evaluate, prepare, train
from maas_ray.data.dataset import PreparedDataset
from maas_ray.registry.bundle import open_bundle
from maas_ray.registry.versions import ModelVersion
from maas_ray.sample_data import SAMPLES
from maas_ray.sample_data.code import docstring_rows
from maas_ray.settings import Settings
from tests.support import ROOT
from tests.support.deployments import undeploy_all
from tests.support.encoders import wordpiece_bert

SPECS = ROOT / "jobs/specs"

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(autouse=True)
def _undeploy(settings: Settings) -> Iterator[None]:
    yield
    undeploy_all(settings)


def prepared(name: str, directory: Path, settings: Settings, *changes: str) -> PreparedDataset:
    spec = PrepareSpec.from_yaml(
        SPECS / f"{name}-prepare.yaml", [f"sources.0.path={SAMPLES[name](directory)}", *changes]
    )
    return prepare(spec, settings=settings)


def trained(name: str, settings: Settings, *changes: str) -> ModelVersion:
    small = ("workers=1", "cpus_per_worker=1", "validation.place=workers", "validation.max_rows=128")
    return train(TrainSpec.from_yaml(SPECS / f"{name}-train.yaml", [*small, *changes]), settings=settings)


def measured(version: ModelVersion, settings: Settings) -> dict[str, float]:
    found = evaluate(
        EvaluateSpec(version=version.reference, resamples=20, batch_size=64, cpus_per_worker=0.5), settings=settings
    )
    for name, value in found.metrics.items():
        if name != "loss":  # that of embeddings depends on the rows of a pass
            assert value == pytest.approx(version.metrics[f"test/{name}"], abs=0.05)  # trained in 16 bits
    return found.metrics


def put(version: ModelVersion, settings: Settings, **changes: Any) -> str:
    own = {} if changes.get("replicas") == "shared" else {"scaling": {"max_replicas": 1}, "resources": {"cpus": 0.5}}
    return deploy(DeploySpec.parse({"version": version.reference, **own, **changes}), settings=settings).url


def predicted(url: str, name: str, body: Any) -> Any:
    answer = httpx.post(f"{url}/v1/models/{name}/predict", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_text_classification(settings: Settings, tmp_path: Path) -> None:
    prepared("packages", tmp_path, settings, "task.tokenizer.vocab_size=1024")
    version = trained("packages", settings, "max_steps=150")
    metrics = measured(version, settings)
    assert metrics["accuracy"] > 0.6  # by chance: 0.23, always the commonest of eight
    assert metrics["f1"] > 0.5
    url = put(version, settings)
    rows = [
        {"text": "    async def wait(self):\n        fut = self._loop.create_future()\n        await fut"},
        {"text": "class TestCase:\n    def assertEqual(self, first, second, msg=None):"},
    ]
    answers = predicted(url, version.name, {"instances": rows})["predictions"]
    assert [answer["label"] for answer in answers] == ["asyncio", "unittest"]
    assert sum(answers[0]["scores"].values()) == pytest.approx(1, abs=1e-4)
    alone = predicted(url, version.name, rows[0])
    assert alone["scores"] == pytest.approx(answers[0]["scores"], abs=1e-5)


def test_token_classification(settings: Settings, tmp_path: Path) -> None:
    prepared("python-tokens", tmp_path, settings, "task.max_length=128", "task.tokenizer.vocab_size=1024")
    version = trained("python-tokens", settings, "max_steps=120", "network.hidden_size=48")
    metrics = measured(version, settings)
    assert metrics["f1"] > 0.6
    assert metrics["accuracy"] > 0.8
    url = put(version, settings)
    text = "for line in lines: return  self"
    said = predicted(url, version.name, {"text": text})
    spans = {text[one["start"] : one["end"]]: one["entity_group"] for one in said["entities"]}
    assert spans == {"for": "KEYWORD", "line": "NAME", "in": "KEYWORD", "lines": "NAME"} | {
        "return": "KEYWORD",
        "self": "NAME",
    }
    of_tokens = predicted(url, version.name, {"tokens": said["tokens"]})
    assert (of_tokens["tags"], of_tokens["scores"]) == (said["tags"], pytest.approx(said["scores"], abs=1e-5))
    tensor = {"name": "tokens", "datatype": "BYTES", "shape": [1, len(said["tokens"])], "data": said["tokens"]}
    outputs = httpx.post(f"{url}/v2/models/{version.name}/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert {one["name"]: one["data"] for one in outputs}["tags"] == said["tags"]


def test_feature_extraction(settings: Settings, tmp_path: Path) -> None:
    """A pretrained encoder, trained further on pairs, embeds through the `openai` client as Transformers does."""
    import torch
    from openai import BadRequestError, NotFoundError, OpenAI
    from transformers import AutoModel, AutoTokenizer

    encoder = tmp_path / "encoder"
    wordpiece_bert(encoder, (row["positive"] for row in islice(docstring_rows(), 2000)), hidden_size=64)
    prepared("docstrings", tmp_path, settings, f"task.tokenizer={encoder}", "task.max_length=48")
    version = trained(
        "docstrings", settings, f"network={{type: pretrained, path: {encoder}}}", "max_steps=40", "learning_rate=5e-3"
    )
    metrics = measured(version, settings)
    assert metrics["recall_at_10"] > 0.35  # untrained: 0.15
    assert metrics["mrr"] > 0.2

    texts = ["Close the file.", "def close(self):\n    self._file.close()", "Return the number of items in the queue."]
    directory = open_bundle(version.uri).fetch()
    model, tokenizer = AutoModel.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    expected = []
    for text in texts:
        with torch.inference_mode():
            vector = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        expected.append((vector / vector.norm()).numpy())

    for endpoint, replicas in (("docstrings", "own"), ("docstrings-shared", "shared")):
        url = put(version, settings, endpoint=endpoint, replicas=replicas)
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            assert client.models.retrieve(endpoint).id in [one.id for one in client.models.list()]
            for format in ({}, {"encoding_format": "float"}):
                answer = client.embeddings.create(model=endpoint, input=texts, **format)
                np.testing.assert_allclose([one.embedding for one in answer.data], expected, atol=1e-4)
            ids = tokenizer(texts)["input_ids"]
            assert answer.usage.prompt_tokens == sum(map(len, ids))
            of_ids = client.embeddings.create(model=endpoint, input=ids)
            np.testing.assert_allclose([one.embedding for one in of_ids.data], expected, atol=1e-4)
            many = client.embeddings.create(model=endpoint, input=texts * 100)
            np.testing.assert_allclose(many.data[299].embedding, expected[2], atol=1e-4)
            with pytest.raises(BadRequestError, match=r"input\[1\]: The text has more than the 48 tokens"):
                client.embeddings.create(model=endpoint, input=["a", "word " * 100])
            with pytest.raises(NotFoundError, match="none"):
                client.embeddings.create(model="none", input="a")
