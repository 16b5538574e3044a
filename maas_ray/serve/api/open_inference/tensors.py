"""The Open Inference Protocol (v2): tensors in, tensors out, and the shape of its errors.

https://github.com/kserve/open-inference-protocol, as JSON or with tensors as bytes behind the JSON document:
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html.
A gateway forwards a body unread, and it is parsed on the model's replica. Knows nothing of Serve.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from maas_ray.bodies import Body
from maas_ray.errors import RequestError
from maas_ray.serve.api.open_inference.values import FLOATS, from_bytes, from_json, to_bytes
from maas_ray.serve.api.refusals import MAX_ERROR
from maas_ray.serve.api.validation import message_of, parse_json
from maas_ray.tasks import TensorSpec
from maas_ray.version import __version__

SERVER = {"name": "maas_ray", "version": __version__, "extensions": ["binary_tensor_data"]}
LENGTH_HEADER = "Inference-Header-Content-Length"
MAX_ROWS = 4096
"""Most rows in a request. A row costs some 30 µs of the event loop of its replica, however small it is."""
_MAX_PROBLEMS = 10  # in one message; a large body may have a million


# --- bodies ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InferBody:
    """The body of a request or of an answer.

    Args:
        data: a JSON document, followed by the bytes of the tensors that are not in the document.
        json_length: length of the JSON document in bytes. None: the document is all of the data.
    """

    data: bytes
    json_length: int | None = None

    @classmethod
    def of_http(cls, data: bytes, header: str | None) -> "InferBody":
        """The body of an HTTP request, with the value of `LENGTH_HEADER`.

        Raises:
            RequestError: the header does not fit the body.
        """
        if header is None:
            return cls(data)
        if not (header.isascii() and header.isdigit() and len(header) < 20 and int(header) <= len(data)):
            raise RequestError(
                f"{LENGTH_HEADER}: {header!r} is not the length of a JSON document in a body of {len(data)} bytes.",
                param=LENGTH_HEADER,
                code="invalid_length",
            )
        return cls(data, int(header))

    @property
    def document(self) -> bytes:
        """The JSON document."""
        return self.data[: self.json_length]

    @property
    def tail(self) -> memoryview:
        """The bytes behind the JSON document."""
        return memoryview(self.data)[len(self.data) if self.json_length is None else self.json_length :]


HINTS = frozenset(
    {
        *("priority", "timeout", "sequence_id", "sequence_start", "sequence_end"),
        *("content_type", "headers", "triton_enable_empty_final_response"),
    }
)
"""Parameters of a request on which no answer depends here. Clients of Triton and KServe send them of their own accord.

A model whose own parameter has such a name gets it.
"""
# MLServer's names for data that is sent as it is. Others, such as base64, would say that it is encoded once more.
_Plain = Literal["np", "pd", "str", "hg_str"]

_Size = Annotated[int, Field(ge=0, lt=2**63)]


class InputParameters(Body):
    binary_data_size: _Size | None = None
    content_type: _Plain | None = None


class InputTensor(Body):
    name: str
    shape: list[_Size]
    datatype: str
    data: list[Any] | None = None
    parameters: InputParameters | None = None


class ChoiceParameters(Body):
    binary_data: bool | None = None
    content_type: _Plain | None = None


class OutputChoice(Body):
    name: str
    parameters: ChoiceParameters | None = None


class RequestParameters(Body):
    model_config = ConfigDict(extra="allow")

    binary_data_output: bool | None = None


class InferDocument(Body):
    """`POST /v2/models/{name}/infer`"""

    inputs: Annotated[list[InputTensor], Field(min_length=1)]
    outputs: list[OutputChoice] | None = None
    id: str | None = None
    parameters: RequestParameters | None = None


# --- requests --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InferRequest:
    """A validated request.

    Args:
        inputs: tensors by name, all with the same number of rows, at least one.
        outputs: the requested outputs; True for those that are requested as bytes.
        id: returned with the answer.
        rows: number of rows.
        parameters: parameters of the model by name; their values are not validated.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, bool]
    id: str | None
    rows: int
    parameters: dict[str, Any]


def parse_infer(
    body: InferBody,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    parameters: Collection[str] = (),
    max_rows: int = MAX_ROWS,
) -> InferRequest:
    """The request in a body, validated against the model's inputs and outputs.

    Args:
        body: the body.
        inputs: the model's inputs.
        outputs: the model's outputs.
        parameters: names of the parameters that the model accepts.
        max_rows: most rows in a request.

    Raises:
        RequestError: the request is wrong; names the place.
    """
    try:
        document = InferDocument.model_validate(parse_json(body.document))
    except ValidationError as error:
        raise _request_error(error) from error
    extra = dict(document.parameters.model_extra or {}) if document.parameters else {}
    for hint in HINTS.intersection(extra).difference(parameters):
        del extra[hint]
    unknown = [name for name in extra if name not in parameters]
    if unknown:
        raise RequestError(
            f"Unknown parameter: 'parameters.{unknown[0]}'.", param="parameters", code="unknown_parameter"
        )
    for index, tensor in enumerate(document.inputs):
        if tensor.shape and tensor.shape[0] > max_rows:
            raise RequestError(
                f"inputs[{index}].shape: {tensor.shape[0]} rows, but a request may have at most {max_rows}. Send "
                "several requests.",
                param=f"inputs[{index}].shape",
                code="invalid_value",
            )
    arrays = _arrays(document.inputs, {spec.name: spec for spec in inputs}, body.tail)
    rows = {len(array) for array in arrays.values()}
    if len(rows) != 1 or rows == {0}:
        counts = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise RequestError(
            f"inputs: the tensors have these numbers of rows: {counts}. Give each the same number, at least one.",
            param="inputs",
            code="rows_mismatch",
        )
    known = [spec.name for spec in outputs]
    binary = bool(document.parameters and document.parameters.binary_data_output)
    requested = dict.fromkeys(known, binary)
    if document.outputs:
        requested = {}
        for output in document.outputs:
            if output.name not in known:
                raise RequestError(
                    f"outputs: {output.name!r} is not an output of this model; it has {', '.join(known)}.",
                    param="outputs",
                    code="unknown_tensor",
                )
            own = output.parameters.binary_data if output.parameters else None
            requested[output.name] = binary if own is None else own
    return InferRequest(arrays, requested, document.id, rows.pop(), extra)


def _arrays(tensors: list[InputTensor], expected: dict[str, TensorSpec], tail: memoryview) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(tensors):
        where = f"inputs[{index}]"
        if tensor.name not in expected:
            raise RequestError(
                f"{where}: {tensor.name!r} is not an input of this model; it has {', '.join(expected)}.",
                param=where,
                code="unknown_tensor",
            )
        if tensor.name in arrays:
            raise RequestError(
                f"{where}: the input {tensor.name!r} appears twice. Keep one.", param=where, code="duplicate_tensor"
            )
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if (size is None) == (tensor.data is None):
            raise RequestError(
                f"{where}: give either data or parameters.binary_data_size.", param=where, code="tensor_data"
            )
        raw = None
        if size is not None:
            if size > len(tail):
                raise RequestError(
                    f"{where}: binary_data_size is {size}, but only {len(tail)} bytes are left in the body.",
                    param=f"{where}.parameters.binary_data_size",
                    code="tensor_size",
                )
            raw, tail = tail[:size], tail[size:]
        arrays[tensor.name] = _array(tensor, raw, expected[tensor.name], where)
    missing = [name for name in expected if name not in arrays]
    if missing:
        raise RequestError(
            f"inputs: {', '.join(missing)} is missing.", param="inputs", code="missing_required_parameter"
        )
    if tail:
        raise RequestError(
            f"The last {len(tail)} bytes of the body do not belong to a tensor.", param="inputs", code="tensor_size"
        )
    return arrays


def _array(tensor: InputTensor, raw: memoryview | None, spec: TensorSpec, where: str) -> np.ndarray:
    if tensor.datatype != spec.datatype:
        raise RequestError(
            f"{where}.datatype: {tensor.name} is {spec.datatype}, not {tensor.datatype!r}.",
            param=f"{where}.datatype",
            code="tensor_datatype",
        )
    # Clients send a column as rows of one value, because Triton's own models have no tensor of rank 1.
    column = len(spec.shape) == 1 and len(tensor.shape) == 2 and tensor.shape[1] == 1
    shape = tensor.shape[:1] if column else tensor.shape
    fits = len(shape) == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise RequestError(
            f"{where}.shape: {tensor.name} has shape {list(spec.shape)} (-1: any), not {tensor.shape}.",
            param=f"{where}.shape",
            code="tensor_shape",
        )
    if raw is None:
        values = from_json(tensor.data or [], spec.datatype, f"{where}.data", optional=spec.optional)
    else:
        values = from_bytes(raw, spec.datatype, where)
    count = int(np.prod(tensor.shape, dtype=object))
    if values.size != count:
        raise RequestError(
            f"{where}: {values.size} elements, but shape {tensor.shape} needs {count}.",
            param=where,
            code="tensor_shape",
        )
    if values.ndim > 1 and values.shape != tuple(tensor.shape):
        raise RequestError(
            f"{where}.data: nested as {list(values.shape)}, but shape is {tensor.shape}.",
            param=f"{where}.data",
            code="tensor_shape",
        )
    return values.reshape(shape)


# --- answers ---------------------------------------------------------------------------------------


def render_infer(
    request: InferRequest, answer: Mapping[str, np.ndarray], outputs: Sequence[TensorSpec], model: str, version: str
) -> InferBody:
    """The answer to a request.

    Raises:
        RequestError: an output has a number that JSON cannot express.
    """
    tensors: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for spec in outputs:
        if spec.name not in request.outputs:
            continue
        array = answer[spec.name]
        tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape)}
        if request.outputs[spec.name]:
            tail.append(to_bytes(array, spec.datatype))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            if spec.datatype in FLOATS and not np.isfinite(array).all():
                raise RequestError(
                    f"The output {spec.name!r} has a value that is not finite, which JSON cannot express. Request it "
                    f'as bytes: "parameters": {{"binary_data": true}}.',
                    param="outputs",
                    code="not_finite",
                )
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": tensors}
    if request.id is not None:
        document["id"] = request.id
    data = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return InferBody(data + b"".join(tail), len(data)) if tail else InferBody(data)


def _request_error(error: ValidationError) -> RequestError:
    problems = []
    for detail in error.errors(include_url=False)[:_MAX_PROBLEMS]:
        location = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"])
        problems.append(message_of(detail, location.lstrip(".")))
    return RequestError(" ".join(problems), code="invalid_value")


def error_shape(error: RequestError) -> dict[str, Any]:
    """An error in the shape of this protocol."""
    return {"error": error.message[:MAX_ERROR]}
