"""An engine is chosen for a model, which is converted once, compressed if requested."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from maas_ray.errors import DeploymentError, SpecError
from maas_ray.serve.engines.openvino.conversion import FACTS, Converted, converted
from maas_ray.serve.engines.start import Started, start
from maas_ray.serve.spec import ServingOptions
from tests.support.bundles import save_bundle
from tests.support.engines import DIGEST, PROMPTS, TASK, request, run_all
from tests.support.errors import raises
from tests.support.openvino import convert


def convert_apart(directory: Path, cache: Path) -> "subprocess.Popen[str]":
    code = f"""
from pathlib import Path
from maas_ray.serve.engines.openvino.conversion import converted
print(converted(Path({str(directory)!r}), {DIGEST!r}, "int8", cache=Path({str(cache)!r}), threads=1).directory)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_killed_conversion_is_repeated_and_concurrent_ones_convert_once(
    directory: Path, model: Converted, tmp_path: Path
) -> None:
    first = convert_apart(directory, tmp_path)
    deadline = time.monotonic() + 60
    while not (begun := list(tmp_path.glob(".*.partial"))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.communicate()
    (begun[0] / "openvino_model.xml").write_text("a part")
    assert not list(tmp_path.glob(f"{DIGEST}*"))

    both = [convert_apart(directory, tmp_path) for _ in range(2)]
    places = {process.communicate(timeout=120)[0].strip() for process in both}
    [whole] = tmp_path.glob(f"{DIGEST}*")
    assert places == {str(whole)}
    assert not list(tmp_path.glob(".*.partial"))
    made = (whole / "openvino_model.xml").stat()
    assert made.st_size > 1000
    plain, compressed = (path / "openvino_model.bin" for path in (model.directory, whole))
    assert compressed.stat().st_size < plain.stat().st_size / 2
    converted(directory, DIGEST, "int8", cache=tmp_path, threads=1)
    assert (whole / "openvino_model.xml").stat().st_mtime_ns == made.st_mtime_ns


def options(**fields: Any) -> ServingOptions:
    return ServingOptions.parse(fields)


def answers(started: Started) -> list[int]:
    try:
        return run_all(started.engine, [request(PROMPTS[0])])[0]
    finally:
        started.engine.close()


@pytest.mark.parametrize("compression", ["int8", "int4"])
def test_compressed_weights_load_and_answer(directory: Path, cache: Path, model: Converted, compression: str) -> None:
    convert(directory, DIGEST, cache, compression)
    started = start(TASK, directory, DIGEST, options(compression=compression), cache=cache)
    assert started.name == f"openvino {compression}"
    assert len(answers(started)) == 24
    weights = [
        (cache / name / "openvino_model.bin").stat().st_size
        for name in (model.directory.name, next(cache.glob(f"{DIGEST}-{compression}-*")).name)
    ]
    assert weights[1] < weights[0] / 2
    if compression == "int4":  # NNCF leaves some models in int8
        facts = next(cache.glob(f"{DIGEST}-int4-*")) / FACTS
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"compression": "int8"}))
        assert start_name(directory, cache, compression="int4") == "openvino int8 (no layer suits int4)"


def test_a_model_that_cannot_be_converted_is_served_by_transformers(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save_bundle(TASK, tmp_path / "bundle")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "ministral"}))
    started = start(TASK, other, DIGEST, options(), cache=tmp_path)
    assert started.name.startswith("transformers (")
    assert "ministral" in started.name
    assert "ministral" in caplog.text
    assert len(answers(started)) == 24
    for asked in ({"engine": "openvino"}, {"compression": "int8"}):
        with raises(DeploymentError, "engine_unavailable", "ministral"):
            start(TASK, other, DIGEST, options(**asked), cache=tmp_path)
    assert start_name(directory, tmp_path, engine="transformers") == "transformers"


def start_name(directory: Path, cache: Path, **fields: Any) -> str:
    started = start(TASK, directory, DIGEST, options(**fields), cache=cache)
    started.engine.close()
    return started.name


def test_a_failed_conversion_is_an_error(directory: Path, tmp_path: Path) -> None:
    other = save_bundle(TASK, tmp_path / "bundle")
    (other / "model.safetensors").write_bytes(b"nothing")
    with raises(DeploymentError, "conversion_failed", "afetensor"):
        converted(other, DIGEST, "none", cache=tmp_path, threads=1)


def test_options_that_contradict_each_other_are_refused() -> None:
    for code, fields in (
        ("engine_needs_cpu", {"engine": "openvino", "resources": {"gpus": 1}}),
        ("compression_needs_openvino", {"compression": "int8", "resources": {"gpus": 1}}),
        ("compression_needs_openvino", {"compression": "int8", "engine": "transformers"}),
    ):
        with raises(SpecError, code, "CPU"):
            options(**fields)
