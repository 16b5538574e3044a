"""Train specs with a DeepSpeed document, and the document as it is filled."""

import json

from maas_ray.training.deepspeed.resolve import resolve
from maas_ray.training.spec import TrainSpec

BASE = "dataset: d\nmodel: m\nnetwork: {type: llama, hidden_size: 64, heads: 2}\n"


def parse(text: str = "", **deepspeed) -> TrainSpec:
    document = f"deepspeed: {json.dumps(deepspeed)}\n" if deepspeed else ""
    return TrainSpec.from_text(BASE + document + text, source="train.yaml")


def filled(spec: TrainSpec, **changes):
    return resolve(
        spec, **{"workers": spec.max_workers, "total_steps": 1000, "hidden_size": 64, "on_cpu": True, **changes}
    )
