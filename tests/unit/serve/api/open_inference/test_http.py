"""The Open Inference Protocol over HTTP: metadata, tensors in JSON and in bytes, and wrong ones named."""

import json
import tracemalloc

import httpx
import numpy as np
import pytest

from maas_ray.errors import RequestError
from maas_ray.serve.api.open_inference.tensors import LENGTH_HEADER, InferBody, parse_infer
from maas_ray.tasks import TensorSpec
from tests.support.echo import Call, tensors
from tests.support.errors import raises
from tests.support.models import INPUTS, OUTPUTS


def test_metadata_and_readiness_follow_the_open_inference_protocol(call: Call) -> None:
    server = call("GET", "/v2").json()
    assert (server["name"], server["extensions"]) == ("maas_ray", ["binary_tensor_data"])
    assert call("GET", "/v2/health/live").json() == {"live": True}
    assert call("GET", "/v2/health/ready").status_code == 503  # `echo` is not
    for path in ("/v2/models/sums", "/v2/models/sums/versions/3"):
        body = call("GET", path).json()
        assert (body["name"], body["versions"]) == ("sums", ["3"])
        assert body["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
        assert call("GET", f"{path}/ready").json() == {"name": "sums", "ready": True}
    assert call("GET", "/v2/models/echo/ready").status_code == 503
    for path in ("/v2/models/nope", "/v2/models/sums/versions/4", "/v2/models/sums/versions/4/ready"):
        assert call("GET", path).status_code == 404


def infer(call: Call, body: dict, tail: str = "") -> httpx.Response:
    return call("POST", f"/v2/models/sums{tail}/infer", json=body)


def test_infer_answers_with_json_tensors(call: Call) -> None:
    for data in ([1, 2.5, 3, 4], [[1, 2.5], [3, 4]]):
        body = infer(call, tensors(data=data) | {"id": "42"}, "/versions/3").json()
        assert body == {
            "model_name": "sums",
            "model_version": "3",
            "id": "42",
            "outputs": [
                {"name": "sum", "datatype": "FP32", "shape": [2], "data": [3.5, 7.0]},
                {"name": "word", "datatype": "BYTES", "shape": [2], "data": ["é", ""]},
            ],
        }
    chosen = infer(call, tensors() | {"outputs": [{"name": "word"}]}).json()
    assert [output["name"] for output in chosen["outputs"]] == ["word"]
    assert "id" not in chosen


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        ({}, "invalid_value", "'inputs'"),
        ({"inputs": []}, "invalid_value", "'inputs'"),
        ([], "invalid_value", "an array"),
        (tensors(datatype="FP64"), "tensor_datatype", "inputs[0].datatype: x is FP32, not 'FP64'"),
        (tensors(shape=[2]), "tensor_shape", "inputs[0].shape: x has shape [-1, 2] (-1: any), not [2]"),
        (tensors(shape=[2, 3]), "tensor_shape", "not [2, 3]"),
        (tensors(shape=[2, -2]), "invalid_value", "inputs[0].shape[1]"),
        (tensors(shape=[10**12, 2]), "invalid_value", "inputs[0].shape: 1000000000000 rows"),
        (tensors(shape=[4097, 2]), "invalid_value", "at most 4096"),
        (tensors(shape=[4096, 2]), "tensor_shape", "8192"),
        (tensors(shape=[0, 2], data=[]), "rows_mismatch", "x 0, word 2"),
        (tensors(shape=[1, 2], data=[1, 2]), "rows_mismatch", "x 1, word 2"),
        (tensors(data=[1, 2, 3]), "tensor_shape", "inputs[0]: 3 elements, but shape [2, 2] needs 4"),
        (tensors(data=[[1, 2, 3, 4]]), "tensor_shape", "inputs[0].data: nested as [1, 4]"),
        (tensors(data=[[1, 2], [3]]), "tensor_shape", "inputs[0].data"),
        (tensors(data=[1, 2, 3, "4"]), "invalid_type", "FP32"),
        (tensors(data=[1, 2, 3, None]), "invalid_type", "FP32"),
        (tensors(data=[1, 2, 3, 1e300]), "out_of_range", "FP32"),
        (tensors(data=[1, 2, 3, {"a": 1}]), "invalid_type", "FP32"),
        (tensors(name="y"), "unknown_tensor", "inputs[0]: 'y'"),
        (tensors(extra=1), "invalid_value", "inputs[0].extra"),
        (tensors(parameters={"binary_data_size": 5}), "tensor_data", "inputs[0]"),
        (tensors(parameters={"classification": 5}), "invalid_value", "inputs[0].parameters.classification"),
        (tensors() | {"parameters": {"classification": 5}}, "unknown_parameter", "parameters.classification"),
        (tensors() | {"outputs": [{"name": "z"}]}, "unknown_tensor", "outputs: 'z'"),
        (tensors() | {"id": 5}, "invalid_value", "'id'"),
        ({"inputs": tensors()["inputs"][:1]}, "missing_required_parameter", "word"),
        ({"inputs": tensors()["inputs"] * 2}, "duplicate_tensor", "inputs[2]: the input 'x'"),
    ],
)
def test_wrong_tensors_are_named(call: Call, body: dict, code: str, named: str) -> None:
    with raises(RequestError, code, named) as caught:
        parse_infer(InferBody(json.dumps(body).encode()), INPUTS, OUTPUTS)
    response = infer(call, body)
    assert (response.status_code, response.json()) == (400, {"error": caught.value.message})


@pytest.mark.parametrize(
    ("datatype", "data", "fine"),
    [
        ("UINT8", [0, 255], True),
        ("UINT8", [256], False),
        ("UINT8", [-1], False),
        ("UINT8", [1.0], False),
        ("UINT8", [True], False),
        ("INT64", [2**63 - 1, -(2**63)], True),
        ("INT64", [2**63], False),
        ("UINT64", [2**64 - 1], True),
        ("UINT64", [2**64], False),
        ("BOOL", [True, False], True),
        ("BOOL", [1], False),
        ("FP16", [65504], True),
        ("FP16", [1e6], False),
        ("BYTES", ["a"], True),
        ("BYTES", [1], False),
    ],
)
def test_each_datatype_accepts_only_its_own_values(datatype: str, data: list, fine: bool) -> None:
    spec = (TensorSpec("x", datatype, (-1,)),)
    body = json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": [len(data)], "data": data}]})
    if fine:
        assert parse_infer(InferBody(body.encode()), spec, spec).inputs["x"].tolist() == np.array(data).tolist()
    else:
        with pytest.raises(RequestError):
            parse_infer(InferBody(body.encode()), spec, spec)


FLOATS, WORDS = np.array([[1, 2.5], [3, np.nan]], "<f4").tobytes(), b"\x02\0\0\0\xc3\xa9\0\0\0\0"


def infer_binary(
    call: Call, floats: bytes = FLOATS, words: bytes = WORDS, rest: bytes = b"", **changes
) -> httpx.Response:
    """`x` and `word` behind the JSON document. `changes`: sizes, parameters or the header told instead."""
    sizes = {"x": len(floats), "word": len(words)} | changes.pop("sizes", {})
    document = tensors() | {"parameters": {"binary_data_output": True}} | changes.pop("document", {})
    for tensor in document["inputs"]:
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": sizes[tensor["name"]]}
    head = json.dumps(document).encode()
    headers = {LENGTH_HEADER: str(len(head))} | changes.pop("headers", {})
    return call("POST", "/v2/models/sums/infer", content=head + floats + words + rest, headers=headers)


def test_tensors_travel_as_bytes_when_requested(call: Call) -> None:
    response = infer_binary(call)
    length = int(response.headers[LENGTH_HEADER])
    assert response.headers["content-type"] == "application/octet-stream"
    document = json.loads(response.content[:length])
    assert [tensor["parameters"] for tensor in document["outputs"]] == [
        {"binary_data_size": 8},
        {"binary_data_size": 10},
    ]
    np.testing.assert_array_equal(np.frombuffer(response.content[length : length + 8], "<f4"), [3.5, np.nan])
    assert response.content[length + 8 :] == WORDS


def test_nan_is_refused_in_json_outputs(call: Call) -> None:
    outputs = [{"name": "sum", "parameters": {"binary_data": False}}, {"name": "word"}]
    response = infer_binary(call, document={"outputs": outputs})
    assert response.status_code == 400
    assert "binary_data" in response.json()["error"]
    mixed = infer_binary(call, np.ones(4, "<f4").tobytes(), document={"outputs": outputs})
    document = json.loads(mixed.content[: int(mixed.headers[LENGTH_HEADER])])
    assert document["outputs"][0]["data"] == [2, 2]
    assert mixed.content.endswith(WORDS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"headers": {LENGTH_HEADER: "100000"}}, LENGTH_HEADER),
        ({"headers": {LENGTH_HEADER: "9" * 5000}}, LENGTH_HEADER),
        ({"headers": {LENGTH_HEADER: "-1"}}, LENGTH_HEADER),
        ({"headers": {LENGTH_HEADER: "1e2"}}, LENGTH_HEADER),
        ({"headers": {LENGTH_HEADER: "0"}}, "JSON"),
        ({"headers": {LENGTH_HEADER: "20"}}, "JSON"),
        ({"sizes": {"x": 2**62}}, "only 26 bytes are left"),
        ({"sizes": {"word": 11}}, "only 10 bytes are left"),
        ({"sizes": {"word": 10**30}}, "inputs[1].parameters.binary_data_size"),
        ({"sizes": {"word": -1}}, "inputs[1].parameters.binary_data_size"),
        ({"sizes": {"x": 15}}, "15 bytes are not a multiple of 4, the size of FP32"),
        ({"sizes": {"x": 12}}, "3 elements, but shape [2, 2] needs 4"),
        ({"rest": b"!"}, "last 1 bytes"),
        ({"words": b"\xff\xff\xff\xff"}, "string at byte 0"),
        ({"words": b"\0\0\0\0\0\0"}, "string at byte 4"),
        ({"words": b"\1\0\0\0\xff\0\0\0\0"}, "string at byte 0 is not UTF-8"),
        ({"words": b"\0\0\0\0" * 3}, "3 elements, but shape [2] needs 2"),
    ],
)
def test_wrong_sizes_are_named(call: Call, changes: dict, named: str) -> None:
    response = infer_binary(call, **changes)
    assert response.status_code == 400
    assert named in response.json()["error"]


def test_a_shape_with_thousands_of_digits_is_refused() -> None:
    body = json.dumps(tensors(shape=[9 * 10**4298, 2])).encode()  # times two, it has no text in Python
    with raises(RequestError, "invalid_value", "inputs[0].shape[0]"):
        parse_infer(InferBody(body), INPUTS, OUTPUTS)


def test_a_long_string_among_numbers_takes_little_memory() -> None:
    x = {"name": "x", "datatype": "FP32", "shape": [10_001], "data": ["a" * 10_000, *[0] * 10_000]}
    spec = (TensorSpec("x", "FP32", (-1,)),)
    tracemalloc.start()
    try:
        for data in (x["data"], [x["data"]]):
            with raises(RequestError, "invalid_type", "FP32"):
                body = InferBody(json.dumps({"inputs": [x | {"data": data}]}).encode())
                parse_infer(body, spec, spec, max_rows=20_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # as an array of strings it would be 400 MB
    finally:
        tracemalloc.stop()


def test_any_byte_but_0_is_true() -> None:
    spec = (TensorSpec("x", "BOOL", (-1,)),)
    tensor = {"name": "x", "datatype": "BOOL", "shape": [3], "parameters": {"binary_data_size": 3}}
    head = json.dumps({"inputs": [tensor]}).encode()
    found = parse_infer(InferBody(head + b"\0\1\xff", len(head)), spec, spec).inputs["x"]
    assert found.tobytes() == b"\0\1\1"
