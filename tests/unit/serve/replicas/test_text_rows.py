"""Models that read text behind a replica: tensors and rows say the same, in batches of any mixture."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from maas_ray.errors import RequestError
from maas_ray.registry.bundle import BundleMeta, Lineage, publish_bundle
from maas_ray.serve.api.model_calls import Answer
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.caller import ANONYMOUS
from maas_ray.serve.model_app import Predictor
from maas_ray.serve.spec import ServingOptions
from maas_ray.settings import Settings
from maas_ray.tasks import NetworkSpec, Task
from maas_ray.tasks.text.classification import TextClassificationSpec
from maas_ray.tasks.text.embeddings import FeatureExtractionSpec
from maas_ray.tasks.text.networks import AttentionText, Bert, RecurrentText
from maas_ray.tasks.text.token_classification import TokenClassificationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from tests.support.encoders import save_bundle

TOKENIZER = FittedTokenizer(vocab_size=300)
LABELS = TextClassificationSpec(tokenizer=TOKENIZER).fit([{"text": "a b", "label": "x"}, {"text": "c", "label": "y"}])
TAGS = TokenClassificationSpec(tokenizer=TOKENIZER).fit([{"tokens": ["a", "b"], "tags": ["B-X", "O"]}])
VECTORS = FeatureExtractionSpec(tokenizer=TOKENIZER).fit([{"anchor": "a", "positive": "b"}])
CASES: dict[str, tuple[Task, NetworkSpec, dict[str, Any], list[Any], str]] = {
    "labels": (LABELS, AttentionText(), {"name": "text", "shape": [3], "data": ["a b", "", "c" * 40]}, [], "label"),
    "tags": (
        TAGS,
        RecurrentText(),
        {"name": "tokens", "shape": [2, 2], "data": ["a", "b", "c", "dd"]},
        [{"tokens": ["a", "b"]}, {"text": "one, two and three"}, {"text": "c  dd"}],
        "tags",
    ),
    "vectors": (
        VECTORS,
        Bert(hidden_size=16),
        {"name": "text", "shape": [2], "data": ["a b", "c" * 40]},
        [{"text": "a b"}, {"tokens": [5, 6, 7]}, {"text": "c" * 40}],
        "tokens",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_infer_and_predict_give_the_same_answers(case: str, settings: Settings, tmp_path: Path) -> None:
    task, network, tensor, rows, output = CASES[case]
    rows = rows or [{"text": text} for text in tensor["data"] if text]
    meta = BundleMeta(name="m", task=task.spec.type, metrics={}, lineage=Lineage())
    bundle = publish_bundle(settings, save_bundle(task, network, tmp_path / "files"), meta)

    async def asked() -> tuple[Any, Any, Any]:
        replica = Predictor.__new__(Predictor)
        await replica.__init__(bundle.uri, bundle.digest, "m", "1", ServingOptions())
        infer = await replica.infer(
            InferBody(json.dumps({"inputs": [tensor | {"datatype": "BYTES"}]}).encode()), ANONYMOUS
        )
        instances = json.dumps({"instances": rows}).encode()
        predict = await replica.predict(PredictBody(instances, "application/json"), ANONYMOUS)
        wrong = json.dumps({"instances": [*rows, {"text": "a", "tokens": [1]}]}).encode()
        refused = await replica.predict(PredictBody(wrong, "application/json"), ANONYMOUS)
        replica.close()
        return infer, predict, refused

    infer, predict, refused = asyncio.run(asked())
    assert isinstance(infer, Answer), infer
    outputs = {one["name"]: one for one in json.loads(infer.body.data)["outputs"]}
    assert outputs.keys() == {spec.name for spec in task.outputs}
    predictions = json.loads(predict.body)["predictions"]
    assert len(predictions) == predict.usage.rows == len(rows)
    assert infer.usage.rows == tensor["shape"][0]
    told = {
        "labels": lambda: [outputs["label"]["data"][0], outputs["label"]["data"][2]],
        "tags": lambda: [outputs["tags"]["data"][:2], outputs["tags"]["data"][2:]],
        "vectors": lambda: outputs["tokens"]["data"],
    }[case]()
    assert told == [predictions[0][output], predictions[-1][output]]
    assert isinstance(refused, RequestError)
    assert refused.param is not None
    assert refused.param.startswith(f"instances[{len(rows)}]")
