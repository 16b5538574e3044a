"""Values of tensors: from JSON or bytes to arrays, and from arrays to bytes. Knows nothing of requests."""

import math
from typing import Any

import numpy as np

from maas_ray.errors import RequestError

_DTypes = dict[str, np.dtype[Any]]
_INTEGERS: _DTypes = {
    f"{sign}INT{bits}": np.dtype(f"{sign}int{bits}".lower()) for sign in ("", "U") for bits in (8, 16, 32, 64)
}
FLOATS: _DTypes = {f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)}


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """The numpy dtype of a datatype of numbers or booleans."""
    return {**_INTEGERS, **FLOATS, "BOOL": np.dtype("bool")}[datatype]


def to_bytes(array: np.ndarray, datatype: str) -> bytes:
    """The inverse of `from_bytes`."""
    if datatype == "BYTES":
        strings = [str(value).encode() for value in array.ravel()]
        return b"".join(part for string in strings for part in (len(string).to_bytes(4, "little"), string))
    return array.astype(numpy_dtype(datatype).newbyteorder("<"), copy=False).tobytes()


def from_bytes(raw: memoryview, datatype: str, where: str) -> np.ndarray:
    """An array of little-endian values, without a copy."""
    if datatype == "BYTES":
        return _unpack(raw, where)
    dtype = numpy_dtype(datatype).newbyteorder("<")
    if len(raw) % dtype.itemsize:
        raise RequestError(
            f"{where}: {len(raw)} bytes are not a multiple of {dtype.itemsize}, the size of {datatype}.",
            param=where,
            code="tensor_size",
        )
    # Every byte but 0 is true. Without the comparison, numpy would compute with a boolean of 255.
    return np.frombuffer(raw, "uint8") != 0 if datatype == "BOOL" else np.frombuffer(raw, dtype)


def _unpack(raw: memoryview, where: str) -> np.ndarray:
    """Strings; each one follows its length in four bytes."""
    values: list[str] = []
    position = 0
    while position < len(raw):
        start = position + 4
        end = start + int.from_bytes(raw[position:start], "little")
        if end > len(raw):
            raise RequestError(
                f"{where}: the string at byte {position} is longer than the rest of the data.",
                param=where,
                code="tensor_size",
            )
        try:
            values.append(str(raw[start:end], "utf-8"))
        except UnicodeDecodeError as error:
            raise RequestError(
                f"{where}: the string at byte {position} is not UTF-8.", param=where, code="invalid_encoding"
            ) from error
        position = end
    strings = np.empty(len(values), dtype=object)
    strings[:] = values
    return strings


def from_json(data: list[Any], datatype: str, where: str, *, optional: bool = False) -> np.ndarray:
    """An array of JSON numbers, booleans or strings, flat or nested.

    Args:
        data: the values.
        datatype: the datatype of the array.
        where: the location of the values, for error messages.
        optional: null is allowed; it becomes NaN or an empty string.

    Raises:
        RequestError: a value is not of the datatype.
    """
    if optional:
        data = _filled(data, "" if datatype == "BYTES" else math.nan)
    if datatype == "BYTES":
        array = np.array(data, dtype=object) if _strings(data) else None
    else:
        try:
            # Strings are refused first: numpy gives each element the size of the longest, so a short body with one
            # long string would become gigabytes.
            array = None if str in _kinds(data) else np.array(data) if data else np.array(data, dtype="int64")
        except (ValueError, OverflowError):
            raise RequestError(
                f"{where}: the rows do not have the same length.", param=where, code="tensor_shape"
            ) from None
    kinds = {"BYTES": "O", "BOOL": "b"} | dict.fromkeys(_INTEGERS, "iu") | dict.fromkeys(FLOATS, "iuf")
    if array is None or array.dtype.kind not in kinds.get(datatype, ""):
        raise RequestError(f"{where}: contains a value that is not {datatype}.", param=where, code="invalid_type")
    if datatype in _INTEGERS:
        bounds = np.iinfo(_INTEGERS[datatype])
        if array.size and (array.min() < bounds.min or array.max() > bounds.max):
            raise RequestError(
                f"{where}: the values are {array.min()} to {array.max()}, but {datatype} is {bounds.min} to "
                f"{bounds.max}.",
                param=where,
                code="out_of_range",
            )
        return array.astype(_INTEGERS[datatype])
    if datatype in FLOATS:
        with np.errstate(over="ignore"):
            array = array.astype(FLOATS[datatype])
        if np.isinf(array).any():  # NaN is allowed: it stands for null, and JSON itself has no NaN
            raise RequestError(
                f"{where}: contains a number too large for {datatype}.", param=where, code="out_of_range"
            )
    return array


def _filled(data: list[Any], missing: Any) -> list[Any]:
    """Nested lists with null replaced."""
    return [_filled(value, missing) if type(value) is list else missing if value is None else value for value in data]


def _kinds(data: list[Any]) -> set[type]:
    """The types of the values in nested lists."""
    kinds = set(map(type, data))
    if list in kinds:
        for value in data:
            if type(value) is list:
                kinds |= _kinds(value)
    return kinds


def _strings(data: Any) -> bool:
    return all(isinstance(value, str) or (isinstance(value, list) and _strings(value)) for value in data)
