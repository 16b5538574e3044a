"""Cost of serving a text engine: tokens/s and time to first token through the gateway ÷ the engine called directly.

    python benchmarks/generation.py [--rounds 3] [--tokens 64] [--requests 3] [--threads 1]

A Llama of 17 million parameters with random weights, which never ends its answers; prompts of 32 tokens, greedy,
fp32. Four sides take turns within every round, at concurrency 1, 8 and 32:

    gateway   POST /v1/completions with stream: true, over HTTP, to what `maas deploy` brought up
    direct    the same at the model's own URL, in one hop to its replica
    engine    the same engine on the same converted model in a process beside this one, called by its protocol
    generate  Transformers' `generate` on a batch of as many prompts: nobody joins or leaves it

Each side computes with the same number of threads. Medians over the rounds; ratios are of one round's figures.
Before it, the cold start of the engine by phase: the imports, the conversion, loading what was converted.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from maas_ray import DeploySpec, cluster, deploy
from maas_ray.registry.bundle import BundleMeta, Lineage, publish_bundle
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.serve.engines import Engine
from maas_ray.serve.text.types import GenerateRequest, SamplingParams
from maas_ray.settings import Settings
from maas_ray.tasks.text.generation import TextGenerationSpec
from maas_ray.tasks.text.networks import Llama
from maas_ray.tasks.text.tokenization import FittedTokenizer

NAME = "generation"
PROMPT = 32
BARS = {"gateway": 0.97, "direct": 0.99}


@dataclass(frozen=True)
class Measured:
    """One run of one side at one concurrency."""

    rate: float
    first_ms: float


def make_version(settings: Settings) -> ModelVersion:
    """A model that answers in ASCII and never ends, so that all sides make the same number of tokens."""
    import torch
    from safetensors.torch import save_file

    text = [{"text": path.read_text(encoding="utf-8")} for path in sorted(Path(os.__file__).parent.glob("a*.py"))]
    task = TextGenerationSpec(tokenizer=FittedTokenizer(vocab_size=4096), sequence_length=1024).fit(text)
    torch.manual_seed(0)
    network = Llama(hidden_size=384, layers=8, heads=6, tie_embeddings=False).build(task)
    with torch.no_grad():
        for token in range(task.vocab_size):
            if not task.tokenizer.decode([token]).isascii() or token == task.end_of_text_id:
                network.lm_head.weight[token] = 0
    with tempfile.TemporaryDirectory() as directory:
        task.save(Path(directory))
        Llama().write_config(network, task, Path(directory))
        save_file(network.state_dict(), Path(directory) / "model.safetensors", metadata={"format": "pt"})
        meta = BundleMeta(name=NAME, task=task.spec.type, metrics={}, lineage=Lineage())
        return Registry(settings).register(publish_bundle(settings, Path(directory), meta))


def prompts(count: int) -> list[list[int]]:
    """Prompts that share no beginning."""
    return [[(number * 37 + place * 101) % 4000 + 1 for place in range(PROMPT)] for number in range(count)]


Ask = Callable[[list[int]], Awaitable[tuple[int, float]]]
"""One prompt to the number of tokens answered and the seconds to the first of them."""


async def load(ask: Ask, concurrency: int, requests: int, seed: int) -> Measured:
    """So many callers, each asking so often, one request after another."""
    asked = prompts((seed + 1) * concurrency * requests)[-concurrency * requests :]
    found: list[tuple[int, float]] = []

    async def caller(number: int) -> None:
        found.extend([await ask(prompt) for prompt in asked[number::concurrency]])

    began = time.perf_counter()
    await asyncio.gather(*map(caller, range(concurrency)))
    took = time.perf_counter() - began
    return Measured(sum(count for count, _ in found) / took, statistics.median(first for _, first in found) * 1e3)


def over_http(url: str, path: str, tokens: int) -> Ask:
    host, _, port = url.removeprefix("http://").partition(":")

    async def ask(prompt: list[int]) -> tuple[int, float]:
        body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        content = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        first, last = 0.0, b""
        async for line in reader:
            if line.startswith(b"data: {"):
                first, last = first or time.perf_counter() - began, line
        writer.close()
        return json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"], first

    return ask


def directly(engine: Engine, tokens: int) -> Ask:
    async def ask(prompt: list[int]) -> tuple[int, float]:
        began, first, count = time.perf_counter(), 0.0, 0
        request = GenerateRequest(prompt, tokens, seed=0, end_ids=(0,), sampling=SamplingParams(temperature=0))
        async with aclosing(engine.generate(request)) as stream:
            async for new in stream:
                first = first or time.perf_counter() - began
                count += len(new.ids)
        return count, first

    return ask


def by_generate(network, concurrency: int, tokens: int, seed: int) -> Measured:
    import torch

    first: list[float] = []

    def note(*_: object, **__: object) -> torch.Tensor:
        first.append(time.perf_counter())
        return torch.zeros(concurrency, dtype=torch.bool)

    batch = torch.tensor(prompts((seed + 1) * concurrency)[-concurrency:])
    began = time.perf_counter()
    answer = network.generate(
        batch, do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0, stopping_criteria=[note]
    )
    took = time.perf_counter() - began
    return Measured((answer.shape[1] - PROMPT) * concurrency / took, (first[0] - began) * 1e3)


def cold_start(directory: Path, digest: str, cache: Path, threads: int) -> None:
    """Print how long each phase of an engine's start takes in a fresh process, with a conversion and without."""
    code = f"""
import time; began = time.perf_counter()
from pathlib import Path
from maas_ray.serve.engines.start import warm_up
from maas_ray.serve.engines.openvino import conversion
from maas_ray.serve.engines.openvino.engine import OpenVinoEngine
from maas_ray.tasks import load_task
directory = Path({str(directory)!r}); task = load_task(directory)
imported = time.perf_counter()
model = conversion.converted(directory, {digest!r}, "none", cache=Path({str(cache)!r}), threads={threads})
converted = time.perf_counter()
engine = OpenVinoEngine(model, threads={threads}, max_requests=32, kv_cache_bytes=10**9, prefill_tokens=512)
loaded = time.perf_counter()
import asyncio; asyncio.run(warm_up(engine, 0))
warm = time.perf_counter()
print(f"imports and task {{imported - began:.2f}} s, conversion {{converted - imported:.2f}} s, "
      f"engine's process and model {{loaded - converted:.2f}} s, first request {{warm - loaded:.2f}} s")
engine.close()
"""
    for what in ("first on a node", "converted before"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        print(f"  {what}: {done.stdout.strip()}", flush=True)


def compare(settings: Settings, arguments: argparse.Namespace) -> int:
    """Measure, print, and return 0 if the gateway holds its promise."""
    import torch

    from maas_ray.serve.engines.openvino import conversion
    from maas_ray.serve.engines.openvino.engine import OpenVinoEngine

    torch.set_num_threads(arguments.threads)
    version = make_version(settings)
    bundle = version.open()
    directory, cache = bundle.fetch(Path(settings.home) / "bundles"), Path(settings.home) / "openvino"
    print(f"{os.cpu_count()} cores, {arguments.threads} threads a side, load {os.getloadavg()[0]:.1f}; cold start:")
    cold_start(directory, bundle.digest, cache, arguments.threads)

    spec = {"version": version.reference, "resources": {"cpus": arguments.threads}, "scaling": {"max_replicas": 1}}
    endpoint = deploy(DeploySpec.parse(spec | {"direct": True}), settings=settings)
    model = conversion.converted(directory, bundle.digest, "none", cache=cache, threads=arguments.threads)
    engine = OpenVinoEngine(model, threads=arguments.threads, max_requests=32, kv_cache_bytes=10**9, prefill_tokens=512)
    network = bundle.load_task(directory).load_model(directory)
    asks = {
        "gateway": over_http(endpoint.url, "/v1/completions", arguments.tokens),
        "direct": over_http(endpoint.url, f"/models/{NAME}/v1/completions", arguments.tokens),
        "engine": directly(engine, arguments.tokens),
    }
    kept = True
    try:
        for ask in asks.values():
            asyncio.run(load(ask, 4, 1, 999))  # warm
        for concurrency in (1, 8, 32):
            runs: dict[str, list[Measured]] = {name: [] for name in (*asks, "generate")}
            for number in range(arguments.rounds):  # the first of a round is another each time
                for name in sorted(asks, reverse=bool(number % 2)):
                    runs[name].append(asyncio.run(load(asks[name], concurrency, arguments.requests, number)))
                runs["generate"].append(by_generate(network, concurrency, arguments.tokens, number))
            print(f"\nc={concurrency}, medians of {arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}")
            for name, found in runs.items():
                ratios = [mine.rate / other.rate for mine, other in zip(found, runs["engine"], strict=True)]
                print(
                    f"  {name:9} {statistics.median(run.rate for run in found):7.0f} tokens/s   first token "
                    f"{statistics.median(run.first_ms for run in found):7.1f} ms   ÷ engine "
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
                )
                kept &= statistics.median(ratios) >= BARS.get(name, 0)
    finally:
        engine.close()
    print("\n" + ("kept" if kept else "NOT kept") + f": at least {BARS} of the engine")
    return 0 if kept else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as home:
        settings = Settings.from_environment({"MAAS_HOME": home, "MAAS_HTTP_PORT": str(cluster.free_ports(1)[0])})
        os.environ |= settings.environment()
        os.environ.pop("RAY_ADDRESS", None)
        cluster.up(settings, dashboard_port=cluster.free_ports(1)[0])
        try:
            cluster.connect(settings, start=False)
            return compare(settings, arguments)
        finally:
            cluster.down(settings)


if __name__ == "__main__":
    sys.exit(main())
