"""The main job, from the standard library's sources to an answer: `make quickstart`.

It prepares, trains, evaluates, deploys and sends a request. A second run reuses the results of the first.
"""

import json
import math
import time
from pathlib import Path

import numpy as np

from maas_ray import DeploySpec, EvaluateSpec, PrepareSpec, TrainSpec, deploy, evaluate, prepare, train
from maas_ray.cli import reported
from maas_ray.cluster import connect
from maas_ray.data.dataset import PreparedDataset
from maas_ray.settings import Settings
from maas_ray.terminal.lines import say

SPECS = Path(__file__).parent / "specs"
PROMPT = "import os\nimport sys\n\ndef main("


def unigram_loss(dataset: PreparedDataset) -> float:
    """Loss on the test split, in nats per token, of a model that only knows how often each token occurs."""
    counts = np.ones(np.iinfo(np.uint16).max + 1)  # add-one smoothing
    for rows in dataset.read(dataset.row_groups("train")):
        counts += np.bincount(rows["input_ids"].reshape(-1), minlength=len(counts))
    counts = counts[: dataset.task.vocab_size]
    losses = -np.log(counts / counts.sum())
    tokens = np.concatenate([rows["input_ids"].reshape(-1) for rows in dataset.read(dataset.row_groups("test"))])
    return float(losses[tokens].mean())


def ask(url: str, model: str) -> str:
    """Complete a line of Python through the OpenAI client."""
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none")
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=48, temperature=0)
    return answer.choices[0].text


def main() -> None:
    started = time.monotonic()
    settings = Settings.from_environment()
    cluster = connect(settings)
    say("\n1. prepare: the standard library's own sources")
    dataset = prepare(PrepareSpec.from_yaml(SPECS / "stdlib-prepare.yaml"), settings=settings)
    say("\n2. train: a small code model, with DeepSpeed on two workers")
    version = train(TrainSpec.from_yaml(SPECS / "stdlib-train.yaml"), settings=settings)
    say("\n3. evaluate: on files that were held out")
    report = evaluate(EvaluateSpec.from_yaml(SPECS / "stdlib-evaluate.yaml"), settings=settings)
    baseline = unigram_loss(dataset)
    say(
        f"loss {report.metrics['loss']:.2f} nats per token; a model that only counts tokens has {baseline:.2f} "
        f"(perplexity {report.metrics['perplexity']:.0f} against {math.exp(baseline):.0f})"
    )
    say("\n4. deploy: the gateway, and the version behind it")
    endpoint = deploy(DeploySpec.from_yaml(SPECS / "quickstart-deploy.yaml"), settings=settings)
    url = f"http://{settings.http_host}:{settings.http_port}/v1"
    say("\n5. complete a prompt, through the OpenAI client:")
    say(indented(PROMPT) + "▌")
    say("the answer:")
    say(indented(PROMPT + ask(url, endpoint.name)))
    body = json.dumps({"model": endpoint.name, "prompt": "def ", "max_tokens": 32})
    say(
        f"\n{version.reference} is live, after {time.monotonic() - started:.0f} s. Try it yourself:\n"
        f"  curl {url}/completions -H 'Content-Type: application/json' -d '{body}'\n"
        f"  dashboard  {cluster.dashboard}  (token: `ray get-auth-token`)\n"
        "  status     .venv/bin/maas status\n"
        "  stop       make down"
    )


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


if __name__ == "__main__":
    with reported():
        main()
