"""The Open Inference Protocol's messages: the published ones on the wire, and to tensors and back without a loss."""

import json

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from maas_ray.errors import RequestError
from maas_ray.serve.api.open_inference.grpc_messages import MESSAGES, to_body, to_response
from maas_ray.serve.api.open_inference.tensors import parse_infer, render_infer
from maas_ray.tasks import TensorSpec
from tests.support.errors import raises


def fill(message, depth: int = 0):
    """The message with something in every field."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof and field.index % 5 != depth % 5:
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            fill(getattr(message, field.name)["key"], depth)
        elif field.message_type:
            fill(getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name), depth + 1)
        else:
            value = {"bool": True, "str": f"{field.name} 東", "bytes": b"\xff\x00"}.get(
                type(field.default_value).__name__ if not field.is_repeated else _element(field), 7
            )
            if field.is_repeated:
                getattr(message, field.name).extend([value, value])
            else:
                setattr(message, field.name, value)
    return message


def _element(field) -> str:
    return {field.TYPE_BOOL: "bool", field.TYPE_STRING: "str", field.TYPE_BYTES: "bytes"}.get(field.type, "number")


CALLS = [name for name in MESSAGES if name.endswith(("Request", "Response")) and not name.startswith("Health")]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("depth", range(5))
def test_messages_are_the_published_ones_on_the_wire(name: str, depth: int) -> None:
    theirs = fill(getattr(service_pb2, name)(), depth)
    ours = MESSAGES[name].FromString(theirs.SerializeToString())
    ours.DiscardUnknownFields()
    assert type(theirs).FromString(ours.SerializeToString()) == theirs


VALUES = {
    "BOOL": [True, False],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "UINT8": [0, 255],
    "UINT16": [0, 2**16 - 1],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "FP32": [1.5, float("inf")],
    "FP64": [1e300, float("-inf")],
    "BYTES": ["", "東京"],
}
FIELDS = {"BOOL": "bool", "BYTES": "bytes", "FP32": "fp32", "FP64": "fp64", "INT64": "int64", "UINT64": "uint64"}


def one_tensor(datatype: str, values: list):
    field = FIELDS.get(datatype, "uint" if datatype.startswith("U") else "int") + "_contents"
    sent = [value.encode() if isinstance(value, str) else value for value in values]
    tensor = {"name": "t", "datatype": datatype, "shape": [len(values)], "contents": {field: sent}}
    return MESSAGES["ModelInferRequest"](inputs=[tensor], id="7")


@pytest.mark.parametrize("datatype", VALUES)
def test_typed_contents_survive_the_conversion_both_ways(datatype: str) -> None:
    spec = (TensorSpec("t", datatype, (-1,)),)
    asked = one_tensor(datatype, VALUES[datatype])
    request = parse_infer(to_body(asked), spec, spec)
    assert request.inputs["t"].tolist() == VALUES[datatype]
    body = render_infer(request, request.inputs, spec, "m", "3")
    answer = to_response(body, typed=True)
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", "7")
    assert answer.outputs[0].contents == asked.inputs[0].contents
    assert not answer.raw_output_contents
    plain = to_response(body, typed=False)
    assert not plain.outputs[0].HasField("contents")
    assert plain.raw_output_contents[0] == bytes(to_body(asked).tail)


def test_sixteen_bit_floats_travel_as_bytes_alone() -> None:
    spec = (TensorSpec("t", "FP16", (-1,)),)
    half = np.array([1.5, np.nan], "<f2")
    tensor = {"name": "t", "datatype": "FP16", "shape": [2]}
    asked = MESSAGES["ModelInferRequest"](inputs=[tensor], raw_input_contents=[half.tobytes()])
    request = parse_infer(to_body(asked), spec, spec)
    # Asked with typed contents or not, there are none to answer with.
    answer = to_response(render_infer(request, request.inputs, spec, "m", "1"), typed=True)
    assert answer.raw_output_contents[0] == half.tobytes()
    with raises(RequestError, "tensor_datatype", "inputs[0].datatype", "'FP16'", "raw_input_contents"):
        to_body(MESSAGES["ModelInferRequest"](inputs=[tensor]))


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 128), ("INT16", -(2**15) - 1), ("UINT8", 256)])
def test_typed_numbers_are_not_wrapped_around(datatype: str, value: int) -> None:
    with raises(RequestError, "out_of_range", "inputs[0].contents", datatype, value):
        to_body(one_tensor(datatype, [value]))


def test_parameters_reach_the_model_except_those_of_http() -> None:
    request = one_tensor("INT8", [1])
    for key, value in {"flag": {"bool_param": True}, "n": {"int64_param": -3}, "t": {"double_param": 0.5}}.items():
        request.parameters.add(key=key, value=value)
    request.inputs[0].parameters.add(key="s", value={"string_param": "x"})
    request.outputs.add(name="t").parameters.add(key="u", value={"uint64_param": 2**63})
    document = json.loads(to_body(request).document)
    assert document["parameters"] == {"flag": True, "n": -3, "t": 0.5, "binary_data_output": True}
    assert document["inputs"][0]["parameters"] == {"s": "x", "binary_data_size": 1}
    assert document["outputs"] == [{"name": "t", "parameters": {"u": 2**63}}]
    for name, value, code, named in (
        ("binary_data_size", {"int64_param": 0}, "unsupported_parameter", "HTTP"),
        ("x", {}, "invalid_value", "None"),
        ("x", {"double_param": float("nan")}, "invalid_value", "nan"),
    ):
        wrong = one_tensor("INT8", [1])
        wrong.inputs[0].parameters.add(key=name, value=value)
        with raises(RequestError, code, "inputs[0]", f"'{name}'", named):
            to_body(wrong)
