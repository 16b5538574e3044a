"""The Open Inference Protocol's gRPC messages, and their conversion to and from an `InferBody`.

The messages are declared here and built at import. Code that `protoc` generates works with one range of protobuf
versions, and Ray decides which version is installed. A descriptor pool of their own separates them from those of a
client in the same process. On the wire they equal the published ones, where a map is a list of pairs and nesting is
invisible:
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
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.api.open_inference.values import from_bytes, numpy_dtype

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
    # These two are grpc.health.v1's; on the wire, an enum is an int32.
    "HealthCheckRequest": "string service",
    "HealthCheckResponse": "int32 status",
    "InferTensorContents": "bool* bool_contents, int32* int_contents, int64* int64_contents, uint32* uint_contents, "
    "uint64* uint64_contents, float* fp32_contents, double* fp64_contents, bytes* bytes_contents",
}
_ONE_OF = {"InferParameter": "parameter_choice"}

# Datatype → the field of `InferTensorContents` with its values. 16-bit floats do not have one and are sent as bytes.
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
# Parameters that locate a tensor's bytes in HTTP; in messages, the bytes have fields of their own.
_HTTP_ONLY = ("binary_data", "binary_data_output", "binary_data_size")


def _classes() -> dict[str, Any]:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="maas_ray/inference.proto", package=PACKAGE, syntax="proto3")
    for message_name, declared in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        if message_name in _ONE_OF:
            message.oneof_decl.add(name=_ONE_OF[message_name])
        for number, declaration in enumerate(filter(None, declared.split(", ")), start=1):
            kind, name = declaration.split()
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
    """The message in these bytes.

    Raises:
        RequestError: the bytes are not such a message.
    """
    try:
        return MESSAGES[name].FromString(data)
    except DecodeError as error:
        raise RequestError(
            f"The call does not contain an {PACKAGE}.{name}: {error}.", code="invalid_message"
        ) from error


# --- requests --------------------------------------------------------------------------------------


def to_body(request: Any) -> InferBody:
    """The body of a `ModelInferRequest`. It requests all outputs as bytes.

    Raises:
        RequestError: the request contradicts itself; names the place. The model's replica validates the rest.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            f"raw_input_contents: {len(raw)} tensors for {len(request.inputs)} inputs. Give one for each input, in the "
            "same order, or none, with contents in each input.",
            param="raw_input_contents",
            code="tensor_data",
        )
    inputs, tail = [], []
    for index, tensor in enumerate(request.inputs):
        where = f"inputs[{index}]"
        if raw and tensor.HasField("contents"):
            raise RequestError(
                f"{where}.contents: raw_input_contents is set too. Set only one of them.",
                param=f"{where}.contents",
                code="tensor_data",
            )
        tail.append(raw[index] if raw else _pack(tensor, where))
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
            {"name": output.name, "parameters": _parameters(output.parameters, f"outputs[{index}]")}
            for index, output in enumerate(request.outputs)
        ]
    if request.id:
        document["id"] = request.id
    head = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return InferBody(b"".join([head, *tail]), len(head))


def _pack(tensor: Any, where: str) -> bytes:
    """The bytes of a tensor with typed contents."""
    field = _TYPED.get(tensor.datatype)
    if field is None:
        raise RequestError(
            f"{where}.datatype: {tensor.datatype!r} does not have typed contents, only {', '.join(_TYPED)}. Send the "
            "tensor in raw_input_contents.",
            param=f"{where}.datatype",
            code="tensor_datatype",
        )
    others = [other.name for other, _ in tensor.contents.ListFields() if other.name != field]
    if others:
        raise RequestError(
            f"{where}.contents: {', '.join(others)} is given, but {tensor.datatype} belongs into {field}.",
            param=f"{where}.contents",
            code="tensor_data",
        )
    values = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        return b"".join(part for value in values for part in (len(value).to_bytes(4, "little"), value))
    dtype, array = numpy_dtype(tensor.datatype), np.array(values)
    if dtype.kind in "iu" and array.size:
        bounds = np.iinfo(dtype)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise RequestError(
                f"{where}.contents: the values are {array.min()} to {array.max()}, but {tensor.datatype} is "
                f"{bounds.min} to {bounds.max}.",
                param=f"{where}.contents",
                code="out_of_range",
            )
    return array.astype(dtype.newbyteorder("<"), copy=False).tobytes()


def _parameters(pairs: Iterable[Any], where: str) -> dict[str, Any]:
    parameters = {}
    for parameter in pairs:
        kind = parameter.value.WhichOneof("parameter_choice")
        value = getattr(parameter.value, kind) if kind else None
        if parameter.key in _HTTP_ONLY:
            raise RequestError(
                f"{where}: {parameter.key!r} is a parameter of HTTP only. Leave it out.",
                param=where,
                code="unsupported_parameter",
            )
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise RequestError(
                f"{where}: {parameter.key!r} is {value}; set it to a boolean, a finite number or a string.", param=where
            )
        parameters[parameter.key] = value
    return parameters


# --- answers ---------------------------------------------------------------------------------------


def to_response(body: InferBody, *, typed: bool) -> Any:
    """The `ModelInferResponse` of an answer whose tensors are all bytes.

    Args:
        body: the answer.
        typed: use typed contents, if every output's datatype has them.
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
