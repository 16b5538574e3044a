"""The Open Inference Protocol (v2): tensors in, tensors out, as JSON; and how its errors look.

https://github.com/kserve/open-inference-protocol. Parsed where the model is, so that a gateway passes a
body on unread. Knows nothing of Serve.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maas_ray import __version__
from maas_ray.errors import RequestError
from maas_ray.serve.guard import parse_json
from maas_ray.serve.wording import wording
from maas_ray.tasks import TensorSpec

SERVER = {"name": "maas_ray", "version": __version__, "extensions": []}
_DTypes = dict[str, np.dtype[Any]]
_INTEGERS: _DTypes = {
    f"{sign}INT{bits}": np.dtype(f"{sign}int{bits}".lower()) for sign in ("", "U") for bits in (8, 16, 32, 64)
}
_FLOATS: _DTypes = {f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)}


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """The numpy dtype of a datatype of numbers or booleans."""
    return {**_INTEGERS, **_FLOATS, "BOOL": np.dtype("bool")}[datatype]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Input(_Strict):
    name: str
    shape: list[Annotated[int, Field(ge=0)]]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] | None = None


class _Output(_Strict):
    name: str
    parameters: dict[str, Any] | None = None


class _Body(_Strict):
    inputs: Annotated[list[_Input], Field(min_length=1)]
    outputs: list[_Output] | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class InferRequest:
    """A checked request: `inputs` have one row or more, the same number each."""

    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...]
    id: str | None
    rows: int


def parse_infer(body: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> InferRequest:
    """The request in a body, checked against what the model takes and gives.

    Raises:
        RequestError: it is not such a request; names the place.
    """
    try:
        document = _Body.model_validate(parse_json(body))
    except ValidationError as error:
        raise _refusal(error) from error
    for place, parameters in (
        ("parameters", document.parameters),
        *((f"inputs[{n}].parameters", tensor.parameters) for n, tensor in enumerate(document.inputs)),
        *((f"outputs[{n}].parameters", tensor.parameters) for n, tensor in enumerate(document.outputs or ())),
    ):
        if parameters:
            raise RequestError(f"{place}: {', '.join(parameters)}: no parameters are supported here.", param=place)
    arrays = _arrays(document.inputs, {spec.name: spec for spec in inputs})
    rows = {len(array) for array in arrays.values()}
    if len(rows) != 1 or rows == {0}:
        found = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise RequestError(f"inputs: give one row or more, as many in each tensor; found {found}.", param="inputs")
    known = tuple(spec.name for spec in outputs)
    asked = tuple(output.name for output in document.outputs or ()) or known
    for name in asked:
        if name not in known:
            raise RequestError(f"outputs: there is no {name!r}; this model gives {', '.join(known)}.", param="outputs")
    return InferRequest(arrays, asked, document.id, rows.pop())


def _arrays(given: list[_Input], expected: dict[str, TensorSpec]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for place, tensor in enumerate(given):
        where = f"inputs[{place}]"
        if tensor.name not in expected:
            known = ", ".join(expected)
            raise RequestError(f"{where}: there is no {tensor.name!r}; this model takes {known}.", param=where)
        if tensor.name in arrays:
            raise RequestError(f"{where}: {tensor.name!r} stands twice; keep one.", param=where)
        arrays[tensor.name] = _array(tensor, expected[tensor.name], where)
    missing = [name for name in expected if name not in arrays]
    if missing:
        raise RequestError(f"inputs: {', '.join(missing)} is missing.", param="inputs")
    return arrays


def _array(tensor: _Input, spec: TensorSpec, where: str) -> np.ndarray:
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
    values = _values(tensor.data, spec.datatype, f"{where}.data")
    count = int(np.prod(tensor.shape, dtype=object))
    if values.size != count:
        raise RequestError(
            f"{where}.data: {values.size} elements; shape {tensor.shape} needs {count}.", param=f"{where}.data"
        )
    if values.ndim > 1 and values.shape != tuple(tensor.shape):
        raise RequestError(
            f"{where}.data: nested as {list(values.shape)}, but shape says {tensor.shape}.", param=f"{where}.data"
        )
    return values.reshape(tensor.shape)


def _values(data: list[Any], datatype: str, where: str) -> np.ndarray:
    """JSON numbers, booleans or strings, flat or nested, as an array of the datatype."""
    if datatype == "BYTES":
        found = np.array(data, dtype=object) if _strings(data) else None
    else:
        try:
            found = np.array(data) if data else np.array(data, dtype="int64")
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
        if not np.isfinite(found).all():
            raise RequestError(f"{where}: holds a number too large for {datatype}.", param=where)
    return found


def _strings(data: Any) -> bool:
    return all(isinstance(value, str) or (isinstance(value, list) and _strings(value)) for value in data)


def render_infer(
    request: InferRequest, answer: Mapping[str, np.ndarray], outputs: Sequence[TensorSpec], model: str, version: str
) -> bytes:
    """The answer to a request, as JSON.

    Raises:
        ValueError: the model gave a number that JSON has no word for.
    """
    tensors = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": list(answer[spec.name].shape),
            "data": answer[spec.name].ravel().tolist(),
        }
        for spec in outputs
        if spec.name in request.outputs
    ]
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": tensors}
    if request.id is not None:
        document["id"] = request.id
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _refusal(error: ValidationError) -> RequestError:
    problems = []
    for detail in error.errors(include_url=False):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
        problems.append(wording(detail, place))
    return RequestError(" ".join(problems), code="invalid_value")


def error_shape(error: RequestError) -> dict[str, Any]:
    """An error as this protocol has it."""
    return {"error": error.message}
