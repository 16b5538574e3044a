"""The Open Inference Protocol (v2): tensors in, tensors out; and how its errors look.

https://github.com/kserve/open-inference-protocol, as JSON or with tensors as bytes behind the JSON document:
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html.
Parsed where the model is, so that a gateway passes a body on unread. Knows nothing of Serve.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from maas_ray.bodies import Body
from maas_ray.errors import RequestError
from maas_ray.serve.api.validation import message_of, parse_json
from maas_ray.tasks import TensorSpec
from maas_ray.version import __version__

SERVER = {"name": "maas_ray", "version": __version__, "extensions": ["binary_tensor_data"]}
LENGTH_HEADER = "Inference-Header-Content-Length"
_MOST_PROBLEMS = 10  # told at once; a large body may have a million
_DTypes = dict[str, np.dtype[Any]]
_INTEGERS: _DTypes = {
    f"{sign}INT{bits}": np.dtype(f"{sign}int{bits}".lower()) for sign in ("", "U") for bits in (8, 16, 32, 64)
}
_FLOATS: _DTypes = {f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)}


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """The numpy dtype of a datatype of numbers or booleans."""
    return {**_INTEGERS, **_FLOATS, "BOOL": np.dtype("bool")}[datatype]


# --- what travels ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class InferBody:
    """A request or an answer.

    Args:
        data: a JSON document, and behind it the bytes of those tensors that are not in it.
        json_length: bytes of the JSON document. None: it is all there is.
    """

    data: bytes
    json_length: int | None = None

    @classmethod
    def of_http(cls, data: bytes, header: str | None) -> "InferBody":
        """A request's body, with the value of `LENGTH_HEADER`.

        Raises:
            RequestError: the header does not fit the body.
        """
        if header is None:
            return cls(data)
        if not (header.isascii() and header.isdigit() and len(header) < 20 and int(header) <= len(data)):
            raise RequestError(
                f"{LENGTH_HEADER}: {header!r} is not the length of a JSON document in a body of {len(data)} bytes.",
                param=LENGTH_HEADER,
            )
        return cls(data, int(header))

    @property
    def document(self) -> bytes:
        """The JSON document."""
        return self.data[: self.json_length]

    @property
    def tail(self) -> memoryview:
        """What stands behind it."""
        return memoryview(self.data)[len(self.data) if self.json_length is None else self.json_length :]


_Size = Annotated[int, Field(ge=0, lt=2**63)]


class InputParameters(Body):
    binary_data_size: _Size | None = None


class InputTensor(Body):
    name: str
    shape: list[_Size]
    datatype: str
    data: list[Any] | None = None
    parameters: InputParameters | None = None


class ChoiceParameters(Body):
    binary_data: bool | None = None


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
    """A checked request.

    Args:
        inputs: by name; one row or more, the same number each.
        outputs: those that are asked for, and whether as bytes.
        id: is given back.
        rows: how many.
        parameters: of the answer, by name; not checked further.
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
) -> InferRequest:
    """The request in a body, checked against what the model takes and gives.

    Args:
        body: the body.
        inputs: what the model takes.
        outputs: what it gives.
        parameters: names of those that the model takes.

    Raises:
        RequestError: it is not such a request; names the place.
    """
    try:
        document = InferDocument.model_validate(parse_json(body.document))
    except ValidationError as error:
        raise _refusal(error) from error
    given = document.parameters.model_extra or {} if document.parameters else {}
    unknown = [name for name in given if name not in parameters]
    if unknown:
        raise RequestError(f"Unknown parameter: 'parameters.{unknown[0]}'.", param="parameters")
    arrays = _arrays(document.inputs, {spec.name: spec for spec in inputs}, body.tail)
    rows = {len(array) for array in arrays.values()}
    if len(rows) != 1 or rows == {0}:
        found = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise RequestError(f"inputs: give one row or more, as many in each tensor; found {found}.", param="inputs")
    known = [spec.name for spec in outputs]
    binary = bool(document.parameters and document.parameters.binary_data_output)
    asked = dict.fromkeys(known, binary)
    if document.outputs:
        asked = {}
        for output in document.outputs:
            if output.name not in known:
                raise RequestError(
                    f"outputs: there is no {output.name!r}; this model gives {', '.join(known)}.", param="outputs"
                )
            own = output.parameters.binary_data if output.parameters else None
            asked[output.name] = binary if own is None else own
    return InferRequest(arrays, asked, document.id, rows.pop(), given)


def _arrays(given: list[InputTensor], expected: dict[str, TensorSpec], tail: memoryview) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for place, tensor in enumerate(given):
        where = f"inputs[{place}]"
        if tensor.name not in expected:
            known = ", ".join(expected)
            raise RequestError(f"{where}: there is no {tensor.name!r}; this model takes {known}.", param=where)
        if tensor.name in arrays:
            raise RequestError(f"{where}: {tensor.name!r} stands twice; keep one.", param=where)
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if (size is None) == (tensor.data is None):
            raise RequestError(f"{where}: give data, or parameters.binary_data_size and no data.", param=where)
        raw = None
        if size is not None:
            if size > len(tail):
                raise RequestError(
                    f"{where}: binary_data_size is {size}, but only {len(tail)} bytes are left in the body.",
                    param=f"{where}.parameters.binary_data_size",
                )
            raw, tail = tail[:size], tail[size:]
        arrays[tensor.name] = _array(tensor, raw, expected[tensor.name], where)
    missing = [name for name in expected if name not in arrays]
    if missing:
        raise RequestError(f"inputs: {', '.join(missing)} is missing.", param="inputs")
    if tail:
        raise RequestError(f"The last {len(tail)} bytes of the body belong to no tensor.", param="inputs")
    return arrays


def _array(tensor: InputTensor, raw: memoryview | None, spec: TensorSpec, where: str) -> np.ndarray:
    if tensor.datatype != spec.datatype:
        raise RequestError(
            f"{where}.datatype: {tensor.name} is {spec.datatype}, not {tensor.datatype!r}.", param=f"{where}.datatype"
        )
    fits = len(tensor.shape) == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise RequestError(
            f"{where}.shape: {tensor.name} has shape {list(spec.shape)} (-1: any), not {tensor.shape}.",
            param=f"{where}.shape",
        )
    if raw is None:
        missing = "" if spec.datatype == "BYTES" else math.nan
        data = _filled(tensor.data or [], missing) if spec.optional else tensor.data or []
        values = _values(data, spec.datatype, f"{where}.data")
    else:
        values = from_bytes(raw, spec.datatype, where)
    count = int(np.prod(tensor.shape, dtype=object))
    if values.size != count:
        raise RequestError(f"{where}: {values.size} elements; shape {tensor.shape} needs {count}.", param=where)
    if values.ndim > 1 and values.shape != tuple(tensor.shape):
        raise RequestError(
            f"{where}.data: nested as {list(values.shape)}, but shape says {tensor.shape}.", param=f"{where}.data"
        )
    return values.reshape(tensor.shape)


def from_bytes(raw: memoryview, datatype: str, where: str) -> np.ndarray:
    """Little-endian values, one after the other. They are not copied."""
    if datatype == "BYTES":
        return _unpack(raw, where)
    dtype = numpy_dtype(datatype).newbyteorder("<")
    if len(raw) % dtype.itemsize:
        raise RequestError(
            f"{where}: {len(raw)} bytes are no whole number of {datatype}, which takes {dtype.itemsize}.", param=where
        )
    # Any byte but 0 is true; numpy would take it over as it is, and compute with a boolean of 255.
    return np.frombuffer(raw, "uint8") != 0 if datatype == "BOOL" else np.frombuffer(raw, dtype)


def _unpack(raw: memoryview, where: str) -> np.ndarray:
    """Strings, each behind its length in four bytes."""
    values: list[str] = []
    place = 0
    while place < len(raw):
        start = place + 4
        end = start + int.from_bytes(raw[place:start], "little")
        if end > len(raw):
            raise RequestError(f"{where}: the string at byte {place} is longer than what follows.", param=where)
        try:
            values.append(str(raw[start:end], "utf-8"))
        except UnicodeDecodeError as error:
            raise RequestError(f"{where}: the string at byte {place} is not UTF-8.", param=where) from error
        place = end
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _values(data: list[Any], datatype: str, where: str) -> np.ndarray:
    """JSON numbers, booleans or strings, flat or nested, as an array of the datatype."""
    if datatype == "BYTES":
        found = np.array(data, dtype=object) if _strings(data) else None
    else:
        try:
            # An array of strings has room for the longest in each place: a short body would become gigabytes.
            found = None if str in _kinds(data) else np.array(data) if data else np.array(data, dtype="int64")
        except (ValueError, OverflowError):
            raise RequestError(f"{where}: its rows are not all of one length.", param=where) from None
    kinds = {"BYTES": "O", "BOOL": "b"} | dict.fromkeys(_INTEGERS, "iu") | dict.fromkeys(_FLOATS, "iuf")
    if found is None or found.dtype.kind not in kinds.get(datatype, ""):
        raise RequestError(f"{where}: holds a value that is not {datatype}.", param=where)
    if datatype in _INTEGERS:
        bounds = np.iinfo(_INTEGERS[datatype])
        if found.size and (found.min() < bounds.min or found.max() > bounds.max):
            raise RequestError(
                f"{where}: {datatype} is {bounds.min} to {bounds.max}; found {found.min()} to {found.max()}.",
                param=where,
            )
        return found.astype(_INTEGERS[datatype])
    if datatype in _FLOATS:
        with np.errstate(over="ignore"):
            found = found.astype(_FLOATS[datatype])
        if np.isinf(found).any():  # JSON has no NaN: one stands for what is missing
            raise RequestError(f"{where}: holds a number too large for {datatype}.", param=where)
    return found


def _filled(data: list[Any], missing: Any) -> list[Any]:
    """Nested lists with something in place of null."""
    return [_filled(value, missing) if type(value) is list else missing if value is None else value for value in data]


def _kinds(data: list[Any]) -> set[type]:
    """The types of values in nested lists."""
    found = set(map(type, data))
    if list in found:
        for value in data:
            if type(value) is list:
                found |= _kinds(value)
    return found


def _strings(data: Any) -> bool:
    return all(isinstance(value, str) or (isinstance(value, list) and _strings(value)) for value in data)


# --- answers ---------------------------------------------------------------------------------------


def render_infer(
    request: InferRequest, answer: Mapping[str, np.ndarray], outputs: Sequence[TensorSpec], model: str, version: str
) -> InferBody:
    """The answer to a request.

    Raises:
        RequestError: the model gave a number that JSON has no word for.
    """
    tensors: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for spec in outputs:
        if spec.name not in request.outputs:
            continue
        array = answer[spec.name]
        tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape)}
        if request.outputs[spec.name]:
            tail.append(_to_bytes(array, spec.datatype))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            if spec.datatype in _FLOATS and not np.isfinite(array).all():
                raise RequestError(
                    f"The model answered {spec.name!r} with a value that is not finite, which JSON cannot carry. Ask "
                    f'for it as bytes: "parameters": {{"binary_data": true}}.',
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


def _to_bytes(array: np.ndarray, datatype: str) -> bytes:
    """The opposite of `from_bytes`."""
    if datatype == "BYTES":
        strings = [str(value).encode() for value in array.ravel()]
        return b"".join(part for string in strings for part in (len(string).to_bytes(4, "little"), string))
    return array.astype(numpy_dtype(datatype).newbyteorder("<"), copy=False).tobytes()


def _refusal(error: ValidationError) -> RequestError:
    problems = []
    for detail in error.errors(include_url=False)[:_MOST_PROBLEMS]:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
        problems.append(message_of(detail, place))
    return RequestError(" ".join(problems), code="invalid_value")


def error_shape(error: RequestError) -> dict[str, Any]:
    """An error as this protocol has it."""
    return {"error": error.message}
