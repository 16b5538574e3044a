"""The Open Inference Protocol's gRPC messages, and what they say as an `InferBody`.

The messages are declared here and made at import. Code that `protoc` generates works with one range of protobuf
versions, and which is installed is Ray's choice; and a pool of their own keeps them apart from those of a client in
the same process. They are the published ones on the wire, where a map is a list of pairs and nesting shows nowhere:
https://github.com/kserve/open-inference-protocol, specification/protocol/open_inference_grpc.proto.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from maas_ray.errors import RequestError
from maas_ray.serve.api.open_inference.tensors import InferBody, from_bytes, numpy_dtype

PACKAGE = "inference"
# Fields are numbered from 1 in this order; `*` is repeated.
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name, string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name, string version, string* extensions",
    "ModelMetadataRequest": "string name, string version",
    "ModelMetadataResponse": "string name, string* versions, string platform, TensorMetadata* inputs, "
    "TensorMetadata* outputs",
    "TensorMetadata": "string name, string datatype, int64* shape",
    "ModelInferRequest": "string model_name, string model_version, string id, Parameter* parameters, Tensor* inputs, "
    "RequestedOutput* outputs, bytes* raw_input_contents",
    "ModelInferResponse": "string model_name, string model_version, string id, Parameter* parameters, "
    "Tensor* outputs, bytes* raw_output_contents",
    "Tensor": "string name, string datatype, int64* shape, Parameter* parameters, InferTensorContents contents",
    "RequestedOutput": "string name, Parameter* parameters",
    "Parameter": "string key, InferParameter value",
    "InferParameter": "bool bool_param, int64 int64_param, string string_param, double double_param, "
    "uint64 uint64_param",
    "InferTensorContents": "bool* bool_contents, int32* int_contents, int64* int64_contents, uint32* uint_contents, "
    "uint64* uint64_contents, float* fp32_contents, double* fp64_contents, bytes* bytes_contents",
}
_ONE_OF = {"InferParameter": "parameter_choice"}

# Which field of `InferTensorContents` has a datatype's values. There is none for 16-bit floats: they travel as bytes.
_TYPED = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# What says in HTTP where a tensor's bytes stand; messages have a place of their own for them.
_OF_HTTP = ("binary_data", "binary_data_output", "binary_data_size")


def _classes() -> dict[str, Any]:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="maas_ray/inference.proto", package=PACKAGE, syntax="proto3")
    for message_name, declared in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        if message_name in _ONE_OF:
            message.oneof_decl.add(name=_ONE_OF[message_name])
        for number, one in enumerate(filter(None, declared.split(", ")), start=1):
            kind, name = one.split()
            element = kind.rstrip("*")
            added = message.field.add(name=name, number=number)
            added.label = field.LABEL_REPEATED if kind != element else field.LABEL_OPTIONAL
            if element in _MESSAGES:
                added.type, added.type_name = field.TYPE_MESSAGE, f".{PACKAGE}.{element}"
            else:
                added.type = getattr(field, f"TYPE_{element.upper()}")
            if message_name in _ONE_OF:
                added.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }


MESSAGES: dict[str, Any] = _classes()
"""The class of each message, by name."""


def parse(name: str, data: bytes) -> Any:
    """A message.

    Raises:
        RequestError: these bytes are none.
    """
    try:
        return MESSAGES[name].FromString(data)
    except DecodeError as error:
        raise RequestError(f"The call carries no {PACKAGE}.{name}: {error}.") from error


# --- requests --------------------------------------------------------------------------------------


def to_body(request: Any) -> InferBody:
    """What a `ModelInferRequest` asks. All outputs are asked for as bytes.

    Raises:
        RequestError: it contradicts itself; names the place. The rest is checked where the model is.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            f"raw_input_contents: {len(raw)} tensors for {len(request.inputs)} inputs; give one for each, in the "
            "same order, or none and contents in each input.",
            param="raw_input_contents",
        )
    inputs, tail = [], []
    for place, tensor in enumerate(request.inputs):
        where = f"inputs[{place}]"
        if raw and tensor.HasField("contents"):
            raise RequestError(
                f"{where}.contents: raw_input_contents is given too; keep one.", param=f"{where}.contents"
            )
        tail.append(raw[place] if raw else _pack(tensor, where))
        parameters = _parameters(tensor.parameters, where) | {"binary_data_size": len(tail[-1])}
        inputs.append(
            {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "parameters": parameters}
        )
    document: dict[str, Any] = {
        "inputs": inputs,
        "parameters": _parameters(request.parameters, "parameters") | {"binary_data_output": True},
    }
    if request.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": _parameters(output.parameters, f"outputs[{place}]")}
            for place, output in enumerate(request.outputs)
        ]
    if request.id:
        document["id"] = request.id
    head = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return InferBody(b"".join([head, *tail]), len(head))


def _pack(tensor: Any, where: str) -> bytes:
    """The bytes of a tensor that comes with typed contents."""
    field = _TYPED.get(tensor.datatype)
    if field is None:
        raise RequestError(
            f"{where}.datatype: there are no typed contents for {tensor.datatype!r}, but for "
            f"{', '.join(_TYPED)}; send the tensor in raw_input_contents.",
            param=f"{where}.datatype",
        )
    others = [found.name for found, _ in tensor.contents.ListFields() if found.name != field]
    if others:
        raise RequestError(
            f"{where}.contents: {tensor.datatype} stands in {field}; found {', '.join(others)}.",
            param=f"{where}.contents",
        )
    values = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        return b"".join(part for value in values for part in (len(value).to_bytes(4, "little"), value))
    dtype, found = numpy_dtype(tensor.datatype), np.array(values)
    if dtype.kind in "iu" and found.size:
        bounds = np.iinfo(dtype)
        if found.min() < bounds.min or found.max() > bounds.max:
            raise RequestError(
                f"{where}.contents: {tensor.datatype} is {bounds.min} to {bounds.max}; found {found.min()} to "
                f"{found.max()}.",
                param=f"{where}.contents",
            )
    return found.astype(dtype.newbyteorder("<"), copy=False).tobytes()


def _parameters(given: Iterable[Any], where: str) -> dict[str, Any]:
    found = {}
    for parameter in given:
        kind = parameter.value.WhichOneof("parameter_choice")
        value = getattr(parameter.value, kind) if kind else None
        if parameter.key in _OF_HTTP:
            raise RequestError(f"{where}: {parameter.key!r} is a parameter of HTTP alone; leave it out.", param=where)
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise RequestError(f"{where}: {parameter.key!r} has no value that can be used: {value}.", param=where)
        found[parameter.key] = value
    return found


# --- answers ---------------------------------------------------------------------------------------


def to_response(body: InferBody, *, typed: bool) -> Any:
    """The `ModelInferResponse` of an answer whose tensors all came as bytes.

    Args:
        body: the answer.
        typed: whether as typed contents, as far as there are some for every output.
    """
    answer, tail = json.loads(body.document), body.tail
    response = MESSAGES["ModelInferResponse"](
        model_name=answer["model_name"], model_version=answer["model_version"], id=answer.get("id", "")
    )
    typed = typed and all(output["datatype"] in _TYPED for output in answer["outputs"])
    for output in answer["outputs"]:
        size = output["parameters"]["binary_data_size"]
        raw, tail = tail[:size], tail[size:]
        tensor = response.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        if not typed:
            response.raw_output_contents.append(bytes(raw))
            continue
        values = from_bytes(raw, tensor.datatype, tensor.name).tolist()
        if tensor.datatype == "BYTES":
            values = [value.encode() for value in values]
        getattr(tensor.contents, _TYPED[tensor.datatype]).extend(values)
    return response
