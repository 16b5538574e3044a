"""The OpenVINO engine: its processes, its imports, and answers that follow a JSON schema."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maas_ray.errors import DeploymentError
from maas_ray.serve.engines import Engine
from maas_ray.serve.engines.openvino import engine as openvino
from maas_ray.serve.engines.openvino.conversion import Converted
from maas_ray.serve.engines.openvino.engine import OpenVinoEngine
from maas_ray.serve.engines.restarting import RestartingEngine
from maas_ray.serve.text.call_formats import GRAMMAR
from maas_ray.serve.text.call_schema import call_schema
from maas_ray.serve.text.json_schema import check
from maas_ray.serve.text.tool_calls import CallParser
from maas_ray.serve.text.types import CallPiece
from tests.support.engines import DIGEST, PROMPTS, TASK, Make, request, run, run_all
from tests.support.errors import raises


def test_a_model_that_does_not_load_is_an_error(model: Converted, tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text("not a model")
    with raises(DeploymentError, "model_load_failed", "RuntimeError"):
        OpenVinoEngine(
            replace(model, directory=tmp_path), threads=1, max_requests=1, kv_cache_bytes=10**9, prefill_tokens=64
        )


def test_openvino_s_process_ends_with_the_replica(model: Converted) -> None:
    code = f"""
import os
from maas_ray.serve.engines.openvino import engine as openvino
from maas_ray.serve.engines.openvino.engine import OpenVinoEngine
from maas_ray.serve.engines.openvino.conversion import Converted
from maas_ray.serve.engines.restarting import RestartingEngine
from pathlib import Path
model = Converted.load(Path({str(model.directory)!r}))
engine = OpenVinoEngine(model, threads=1, max_requests=1, kv_cache_bytes=10**9, prefill_tokens=64)
openvino.prepare()
print(engine._process.pid, *(process.pid for process, _ in openvino._spare), flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -9
    working, prepared = map(int, done.stdout.split())
    await_end(working)
    await_end(prepared)


@pytest.mark.parametrize("make", ["openvino"], indirect=True)
def test_a_prepared_process_is_used_if_it_is_alive(make: Make) -> None:
    answers = []
    for kill in (False, True):
        openvino.prepare()
        openvino.prepare()  # one is enough
        (process, _), *more = openvino._spare
        assert not more
        if kill:
            process.kill()
            process.wait()
        engine = make()
        assert (engine._process is process) is not kill
        assert not openvino._spare
        answers.append(run_all(engine, [request(PROMPTS[0])])[0])
    assert answers[0] == answers[1]


def await_end(pid: int) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)


def test_the_serving_path_imports_neither_torch_nor_transformers(directory: Path, model: Converted) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from maas_ray.serve.engines.start import start, warm_up
from maas_ray.serve.model_app import Generator, TextCodec
from maas_ray.serve.spec import ServingOptions
from maas_ray.tasks import load_task
directory = Path({str(directory)!r})
task = load_task(directory)
found = start(task, directory, {DIGEST!r}, ServingOptions(), cache=Path({str(model.directory.parent)!r}))
TextCodec(task, found.context, found.end_ids)
asyncio.run(warm_up(found.engine, 0))
found.engine.close()
print(found.name, [name for name in ("torch", "transformers", "openvino") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "openvino []", done.stderr


KEPT_SCHEMAS = {
    "object": {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "e": {"enum": ["x", None]}},
        "required": ["n", "e"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    "string": {"type": "string"},
    "date": {"type": "string", "format": "date"},
    "either": {"anyOf": [{"type": "null"}, {"const": {"a": [1, "é"]}}]},
    "itself": {
        "$ref": "#/$defs/list",
        "$defs": {"list": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}]}},
    },
    "anything": {"type": "object", "properties": {}},
    "types": {"type": ["integer", "null"]},
}
SPACE = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 100}


@pytest.mark.parametrize("make", ["openvino"], indirect=True)
def test_required_calls_follow_the_schemas_of_their_functions(engine: Engine) -> None:
    unit = {"$defs": {"unit": {"enum": ["C", "F"]}}, "type": "object", "required": ["unit"]}
    unit["properties"] = {"unit": {"$ref": "#/$defs/unit"}}
    flag = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters}}
        for name, parameters in (("unit", unit), ("flag", flag))
    ]
    for names, several in ((["unit", "flag"], True), (["flag"], False)):
        schema = call_schema(tools, names, several=several)
        asked = [
            request(PROMPTS[0], end_ids=(TASK.end_of_text_id,), json_schema=schema, seed=seed, **SPACE)
            for seed in range(12)
        ]
        called: list[tuple[str, Any]] = []
        for ids in run_all(engine, asked):
            if ids[-1] == TASK.end_of_text_id:
                parser = CallParser(GRAMMAR, {name: {} for name in names}, streamed=False)
                pieces = parser.push(TASK.tokenizer.decode(ids[:-1]), final=True)
                assert parser.calls == len(pieces) >= 1  # nothing but calls
                assert several or len(pieces) == 1
                called += [
                    (piece.name, json.loads(piece.arguments)) for piece in pieces if isinstance(piece, CallPiece)
                ]
        assert {name for name, _ in called} == {*names}
        assert all(
            arguments in ([{"unit": "C"}, {"unit": "F"}] if name == "unit" else [{"on": True}, {"on": False}])
            for name, arguments in called
        )


@pytest.mark.parametrize("make", ["openvino"], indirect=True)
def test_answers_follow_a_json_schema(engine: Engine) -> None:
    assert "json_schema" in engine.supports
    end = TASK.end_of_text_id
    # A model of random weights likes white space between a document's parts, and not to end: some draws are cut off.
    whole: dict[str, list[Any]] = {name: [] for name in KEPT_SCHEMAS}
    asked = [
        (name, request(PROMPTS[0], end_ids=(end,), json_schema=check(schema), seed=seed, **SPACE))
        for name, schema in KEPT_SCHEMAS.items()
        for seed in range(12)
    ]
    plain = request(PROMPTS[1])
    *found, beside = run_all(engine, [*(one for _, one in asked), plain])
    assert beside == run_all(engine, [plain])[0]  # a neighbour's schema is none of its business
    for (name, _), ids in zip(asked, found, strict=True):
        if ids[-1] == end:
            whole[name].append(json.loads(TASK.tokenizer.decode(ids[:-1])))
    assert all(
        set(one) == {"n", "e"} and isinstance(one["n"], int) and one["e"] in ("x", None) for one in whole["object"]
    )
    assert all(len(one) in (2, 3) and {type(item) for item in one} == {bool} for one in whole["array"])
    assert all(isinstance(one, str) for one in whole["string"])
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", one) for one in whole["date"])
    assert all(one in (None, {"a": [1, "é"]}) for one in whole["either"])
    assert all(one is None or isinstance(one, int) for one in whole["types"])
    assert all(isinstance(one, dict) for one in whole["anything"])
    assert all(whole[name] for name in set(whole) - {"anything"}), whole


def test_answers_go_on_after_the_death_of_openvino_s_process(model: Converted) -> None:
    engines: list[OpenVinoEngine] = []

    def begin() -> OpenVinoEngine:
        engines.append(
            OpenVinoEngine(
                replace(model, context=2000), threads=1, max_requests=8, kv_cache_bytes=10**9, prefill_tokens=64
            )
        )
        return engines[-1]

    engine = RestartingEngine(begin)
    asked = [
        request(PROMPTS[0], max_tokens=300),
        request(PROMPTS[1], max_tokens=300, temperature=0.8, seed=4, presence_penalty=0.5),
        request(PROMPTS[2], max_tokens=300, logprobs=True),
    ]
    expected = run_all(engine, asked)

    async def kill() -> list[list[int]]:
        answers = [asyncio.create_task(run(engine, one)) for one in asked]
        async with aclosing(engine.generate(request(PROMPTS[3], max_tokens=300))) as stream:
            await anext(stream)
            engines[0]._process.kill()
            await anext(stream)
        return await asyncio.gather(*answers)

    assert asyncio.run(kill()) == expected
    assert len(engines) == 2
    engine.close()


def test_an_engine_that_finishes_no_step_in_time_has_died(model: Converted) -> None:
    engine = OpenVinoEngine(
        replace(model, context=100_000),
        threads=1,
        max_requests=1,
        kv_cache_bytes=10**9,
        prefill_tokens=64,
        patience_s=3,
    )

    async def ask() -> None:
        async with aclosing(engine.generate(request(PROMPTS[0], max_tokens=90_000))) as stream:
            await anext(stream)
            engine.check()
            os.kill(engine._process.pid, signal.SIGSTOP)
            deadline = time.monotonic() + 20
            with raises(DeploymentError, "engine_stopped", "3 s"):
                while time.monotonic() < deadline:
                    engine.check()
                    await asyncio.sleep(0.1)
            with raises(DeploymentError, "engine_failed", "3 s"):
                async for _ in stream:
                    pass

    asyncio.run(ask())
