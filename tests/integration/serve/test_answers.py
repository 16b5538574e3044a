"""Answers of deployed versions through HAProxy: the `openai` client, Node's, Triton's, curl, and wrong requests."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from maas_ray import endpoints, undeploy
from maas_ray.errors import DeploymentError
from maas_ray.views.endpoints import show_deployed
from tests.support import ROOT
from tests.support.bundles import register, save_bundle
from tests.support.served import IMAGES, TEXT, Served, complete, image_request, put


def test_the_openai_client_gets_what_the_model_says(served: Served, openai_client) -> None:
    import torch

    assert [model.id for model in openai_client.models.list()] == ["lm"]
    assert openai_client.models.retrieve("lm").id == "lm"

    model = TEXT.load_model(served.text)
    prompt = TEXT.tokenizer.encode("for name in").ids
    ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0)[0, len(prompt) :]
    answer = openai_client.completions.create(model="lm", prompt="for name in", max_tokens=12, temperature=0)
    assert answer.choices[0].text == TEXT.tokenizer.decode(ids.tolist())
    assert answer.choices[0].finish_reason == "length"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(prompt), 12, len(prompt) + 12)


def test_streams_say_the_same(openai_client) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "東京 🚀"}]
    asked = {"model": "lm", "messages": messages, "max_tokens": 40, "seed": 5, "temperature": 0.9, "top_p": 0.9}
    whole = openai_client.chat.completions.create(**asked)
    chunks = list(openai_client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert whole.usage.prompt_tokens == len(TEXT.tokenizer.encode("be brief\n東京 🚀").ids)
    assert openai_client.chat.completions.create(**(asked | {"seed": 6})).choices[0].message.content != (
        whole.choices[0].message.content
    )
    text = openai_client.completions.create(model="lm", prompt="a", max_tokens=30, seed=1, stop=None).choices[0].text
    stop = text[9:11]
    stopped = openai_client.completions.create(model="lm", prompt="a", max_tokens=30, seed=1, stop=[stop])
    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    # The tokens up to the stop string, however many came together.
    shorter = {"model": "lm", "prompt": "a", "seed": 1}
    counts = (
        n for n in range(1, 31) if stop in openai_client.completions.create(**shorter, max_tokens=n).choices[0].text
    )
    assert stopped.usage.completion_tokens == next(counts)


def test_several_answers_with_penalties_and_log_probabilities(openai_client) -> None:
    ask = openai_client.completions.create
    asked = {"model": "lm", "max_tokens": 12, "seed": 3, "frequency_penalty": 0.5, "presence_penalty": 0.5}
    alone = [ask(**asked, prompt=prompt) for prompt in ("a", "def ")]
    together = ask(**asked, prompt=["a", "def "], n=3, logprobs=0)
    assert [choice.index for choice in together.choices] == list(range(6))
    texts = [choice.text for choice in together.choices]
    assert [texts[0], texts[3]] == [answer.choices[0].text for answer in alone]
    assert len(set(texts[:3])) == len(set(texts[3:])) == 3
    assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone)
    assert together.usage.completion_tokens == 6 * 12
    for choice in together.choices:
        found = choice.logprobs
        assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == 12
        assert all(-20 < logprob < 0 for logprob in found.token_logprobs)
    streamed: dict[int, list] = {}
    for chunk in ask(**asked, prompt=["a", "def "], n=3, logprobs=0, stream=True):
        streamed.setdefault(chunk.choices[0].index, []).append(chunk.choices[0])
    for index, pieces in streamed.items():
        assert "".join(piece.text for piece in pieces) == texts[index]
        offsets = [offset for piece in pieces if piece.logprobs for offset in piece.logprobs.text_offset]
        assert offsets == together.choices[index].logprobs.text_offset
        assert [piece.finish_reason for piece in pieces][-1] == "length"
    chat = openai_client.chat.completions.create(
        model="lm", messages=[{"role": "user", "content": "x"}], max_tokens=5, logprobs=True, n=2, seed=3
    )
    for choice in chat.choices:
        assert len(choice.logprobs.content) == 5
        spelled = b"".join(bytes(one.bytes) for one in choice.logprobs.content)
        assert spelled.decode(errors="replace") == choice.message.content


def test_json_and_what_is_no_schema(served: Served, openai_client) -> None:
    import openai
    from pydantic import BaseModel

    class Step(BaseModel):
        done: bool

    ask = {"model": "lm", "messages": [{"role": "user", "content": "x"}], "max_tokens": 90}
    schema = {"type": "array", "items": {"enum": ["a", 5]}, "minItems": 1, "maxItems": 2}
    wanted = {"type": "json_schema", "json_schema": {"name": "list", "schema": schema, "strict": True}}
    found = openai_client.chat.completions.create(**ask, response_format=wanted, n=8, seed=1)
    whole = [json.loads(one.message.content) for one in found.choices if one.finish_reason == "stop"]
    assert whole
    assert all(item in ("a", 5) for one in whole for item in one)
    for seed in range(20):
        try:
            step = openai_client.chat.completions.parse(**ask, response_format=Step, seed=seed)
        except openai.LengthFinishReasonError:
            continue  # a model of random weights writes much white space
        assert step.choices[0].message.parsed.done in (True, False)
        break
    else:
        pytest.fail("not one answer of twenty was whole")
    text = openai_client.chat.completions.create(**ask, response_format={"type": "json_object"}, temperature=0)
    assert text.choices[0].message.content.startswith("{")
    for bad in ({"type": "array", "items": {"$ref": "#/nope"}}, {"type": "string", "pattern": "("}):
        wanted = {"type": "json_schema", "json_schema": {"name": "bad", "schema": bad}}
        with pytest.raises(openai.BadRequestError) as caught:
            openai_client.chat.completions.create(**ask, response_format=wanted)
        assert (caught.value.code, caught.value.param) == ("invalid_json_schema", "response_format")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError) as caught:  # this model's template knows none
        openai_client.chat.completions.create(**ask, tools=[tool])
    assert caught.value.param == "tools"
    assert complete(served.url).status_code == 200  # the engine has taken no harm


NODE = ROOT / "tests" / "node"


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="needs node and npm")
def test_the_node_client(served: Served, tmp_path: Path) -> None:
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().removeprefix("v").partition(".")[0]) < 20:
        pytest.skip(f"OpenAI's client wants Node 20 or newer; this is {version.strip()}")
    for file in NODE.iterdir():
        shutil.copy(file, tmp_path)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=60000"]
    installed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)
    if any(word in installed.stderr for word in ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT")):
        pytest.skip("no npm registry can be reached")
    assert installed.returncode == 0, installed.stderr
    environment = os.environ | {"OPENAI_BASE_URL": f"{served.url}/v1", "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        ["node", "ask.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["streamed"] == found["whole"] != ""
    assert found["usage"]["completion_tokens"] == 12
    assert found["error"] == {"kind": "BadRequestError", "status": 400, "param": "top_logprobs"}
    assert found["missing"] == "NotFoundError"


def test_mistakes_reach_the_client_as_its_own_errors(served: Served, openai_client) -> None:
    import openai

    ask = openai_client.completions.create
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        ask(model="nope", prompt="x")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(model="lm", prompt="x " * 400)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    for changes, param in (({"logprobs": 2}, "logprobs"), ({"logit_bias": {"5": 1}}, "logit_bias")):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(model="lm", prompt="x", **changes)
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", param)
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(model="lm", messages=[{"role": "user", "content": "x" * 2000}])
    assert caught.value.param == "messages"
    big = httpx.post(f"{served.url}/v1/completions", content=b"x" * 17_000_000, timeout=60)
    assert (big.status_code, big.json()["error"]["code"]) == (413, "request_too_large")
    answer = httpx.get(f"{served.url}/nothing", headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-client-request-id"]) == (404, "mine")
    assert len(answer.headers["x-request-id"]) == 36  # HAProxy's


def test_a_model_that_openvino_does_not_know_is_served_by_transformers_which_is_said(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from maas_ray.views.endpoints import show_endpoints

    version = register(served.settings, "odd", TEXT, tmp_path, alias=None, config={"model_type": "ministral"})
    with pytest.raises(DeploymentError, match=r"engine: openvino.*ministral"):
        put(served.settings, version.reference, engine="openvino")
    put(served.settings, version.reference)
    try:
        capsys.readouterr()
        show_endpoints(served.settings, as_json=True)
        engines = {endpoint["name"]: endpoint["engine"] for endpoint in json.loads(capsys.readouterr().out)}
        assert engines["odd"] == "transformers (OpenVINO's engine does not know the architecture ministral)"
        assert (engines["lm"], engines["img"]) == ("openvino", "torch")
        # The same weights, so the same words from either engine.
        answers = [complete(served.url, model=name, max_tokens=40).json()["choices"] for name in ("odd", "lm")]
        assert answers[0] == answers[1]
    finally:
        undeploy("odd", settings=served.settings)


def test_images_in_batches_get_their_own_answers(served: Served, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    network = IMAGES.load_model(save_bundle(IMAGES, tmp_path))
    expected = IMAGES.predict(network, {"image": pixels})
    bad = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [300] * 64}]}

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as http:
            bodies = [image_request(pixels[n : n + 1]) for n in range(24)]
            bodies += [bad, image_request(pixels)]  # a bad one, and one larger than a batch
            return await asyncio.gather(*(http.post("/v2/models/img/infer", json=body) for body in bodies))

    *single, refused, together = asyncio.run(ask_all())
    assert refused.status_code == 400
    for number, response in enumerate(single):
        outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
        assert outputs["label"] == [expected["label"][number]]
        np.testing.assert_allclose(outputs["scores"], expected["scores"][number], rtol=1e-5)
    outputs = {output["name"]: output["data"] for output in together.json()["outputs"]}
    assert outputs["label"] == expected["label"].tolist()
    assert httpx.get(f"{served.url}/v2/models/img/ready").json() == {"name": "img", "ready": True}
    assert httpx.get(f"{served.url}/v2/health/ready").status_code == 200


def test_tritonclient_sends_and_gets_bytes(served: Served) -> None:
    from tritonclient import http as triton

    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    as_json = httpx.post(f"{served.url}/v2/models/img/infer", json=image_request(pixels)).json()
    expected = {output["name"]: output["data"] for output in as_json["outputs"]}
    image = triton.InferInput("image", list(pixels.shape), "UINT8")
    image.set_data_from_numpy(pixels)
    chosen = [triton.InferRequestedOutput("label", binary_data=False), triton.InferRequestedOutput("scores")]
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        assert client.is_model_ready("img", "1")
        assert client.get_model_metadata("img", "1")["inputs"][0]["name"] == "image"
        for version, outputs in (("", None), ("1", chosen)):
            answer = client.infer("img", [image], model_version=version, outputs=outputs)
            labels = [one.decode() if isinstance(one, bytes) else one for one in answer.as_numpy("label")]
            assert labels == expected["label"]
            np.testing.assert_allclose(answer.as_numpy("scores").ravel(), expected["scores"], rtol=1e-5)
        with pytest.raises(triton.InferenceServerException, match="version 2"):
            client.infer("img", [image], model_version="2")


def test_tritonclient_asks_for_text(served: Served) -> None:
    from tritonclient import http as triton

    texts = ["for name in", "東京 🚀"]
    expected = [complete(served.url, prompt=text, max_tokens=9).json()["choices"][0]["text"] for text in texts]
    prompt = triton.InferInput("prompt", [2], "BYTES")
    how = {"max_tokens": 9, "temperature": 0.0}
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as client:
        metadata = client.get_model_metadata("lm", "1")
        assert [tensor["name"] for side in ("inputs", "outputs") for tensor in metadata[side]] == ["prompt", "text"]
        for version, binary in (("", True), ("1", False)):
            prompt.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object), binary_data=binary)
            outputs = [triton.InferRequestedOutput("text", binary_data=binary)]
            answer = client.infer("lm", [prompt], model_version=version, outputs=outputs, parameters=how)
            found = [one.decode() if isinstance(one, bytes) else one for one in answer.as_numpy("text")]
            assert found == expected
        with pytest.raises(triton.InferenceServerException, match=r"parameters\.max_tokens"):
            client.infer("lm", [prompt], parameters={"max_tokens": 0})
        with pytest.raises(triton.InferenceServerException, match="maximum context length"):
            client.infer("lm", [prompt], parameters={"max_tokens": 500})


# --- the plain way


def post(url: str, body: object) -> httpx.Response:
    return httpx.post(url, json=body, timeout=60)


def test_curl_sends_a_picture_and_gets_a_label(served: Served, tmp_path: Path) -> None:
    network = IMAGES.load_model(save_bundle(IMAGES, tmp_path))
    pixels = np.random.default_rng(3).integers(0, 256, (20, 9, 3), dtype=np.uint8)  # not the model's size, nor colour
    picture = tmp_path / "picture.png"
    Image.fromarray(pixels).save(picture)
    stored = IMAGES.encode([{"image": pixels}])["pixel_values"]  # as `prepare` does
    expected = IMAGES.predict(network, {"image": stored.transpose(0, 2, 3, 1)})
    url = f"{served.url}/v1/models/img/predict"

    curl = subprocess.run(["curl", "-sS", "-F", f"file=@{picture}", url], capture_output=True, check=True, timeout=60)

    said = json.loads(curl.stdout)
    assert (said["model"], said["version"], said["label"]) == ("img", "1", expected["label"][0])
    np.testing.assert_allclose(list(said["scores"].values()), expected["scores"][0], rtol=1e-5)
    row = {"image": base64.b64encode(picture.read_bytes()).decode()}
    assert post(url, row).json() == said
    several = post(
        f"{served.url}/v1/models/img/versions/1/predict", {"instances": [row, {"image": [[0] * 8] * 8}, row]}
    )
    first, second, third = several.json()["predictions"]
    for answer in (first, third):
        assert answer["label"] == said["label"]
        assert answer["scores"] == pytest.approx(said["scores"], rel=1e-5)
    assert second["scores"] != pytest.approx(said["scores"], rel=1e-5)


def test_the_suggested_command_works_as_it_is(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    (endpoint,) = [one for one in endpoints(settings=served.settings) if one.name == "img"]
    show_deployed(endpoint)
    command = next(line for line in capsys.readouterr().out.splitlines() if "curl" in line)
    curl = subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=60)
    assert json.loads(curl.stdout)["label"] in ("dark", "light")


def test_text_the_plain_way(served: Served) -> None:
    expected = complete(served.url).json()["choices"][0]["text"]
    row = {"prompt": "def ", "max_tokens": 8, "temperature": 0}
    url = f"{served.url}/v1/models/lm/predict"
    assert post(url, row).json() == {"model": "lm", "version": "1", "text": expected}
    assert post(url, {"instances": [row] * 3}).json()["predictions"] == [{"text": expected}] * 3
    form = httpx.post(url, files={name: (None, str(value)) for name, value in row.items()}, timeout=60)
    assert form.json()["text"] == expected


def test_what_is_wrong_with_a_row_is_told(served: Served) -> None:
    url = f"{served.url}/v1/models"
    wrong = [
        (post(f"{url}/img/predict", {"image": "aGVsbG8="}), "image", "not an image"),
        (post(f"{url}/img/predict", {"prompt": "x"}), "image", "Missing required parameter"),
        (httpx.post(f"{url}/img/predict", files={"picture": b"x"}), "picture", "'file'"),
        (httpx.post(f"{url}/img/predict", files={"other": (None, "x")}), "file", "'file'"),
        (post(f"{url}/lm/predict", {"prompt": "x", "max_tokens": 900}), "prompt", "maximum context length"),
        (post(f"{url}/lm/predict", {"instances": [{"prompt": "x"}, 5]}), "instances[1]", "expected an object"),
    ]
    for response, param, says in wrong:
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert says in error["message"]
    assert post(f"{url}/img/versions/2/predict", {}).status_code == 404
    assert post(f"{url}/none/predict", {}).json()["error"]["code"] == "model_not_found"


def test_the_gateway_answers_as_its_document_says(served: Served) -> None:
    """Requests of a fuzzer; `tests/unit/serve/api/test_fuzz.py` sends many more to the same application."""
    import hypothesis
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    conform = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
    document = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    document.validate()
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    quick = hypothesis.settings(
        max_examples=8, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    asked: set[str] = set()
    for found in document.get_all_operations():
        operation = found.ok()
        for mode in modes:

            @quick
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                case.call_and_validate(checks=[not_a_server_error, *conform], timeout=30)

            with suppress(hypothesis.errors.Unsatisfiable):  # nothing can be wrong with a GET that takes nothing
                ask()
                asked.add(operation.label)
    assert len(asked) == len(list(document.get_all_operations()))
