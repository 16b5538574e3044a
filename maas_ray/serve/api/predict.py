"""Predict: one row or several in the task's own terms, as JSON or as a form with a file.

    {"image": "<base64>"}                      → {"model": …, "version": …, "label": "7", "scores": {…}}
    {"instances": [{"image": …}, …]}           → {"model": …, "version": …, "predictions": [{"label": …}, …]}
    a multipart form with the field `file`     → as the first

Several rows are called `instances`, as in TensorFlow Serving, KServe and Vertex AI. A gateway forwards a body unread,
and it is parsed on the model's replica. The fields of a row are the task's. Knows nothing of Serve.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from maas_ray.errors import RequestError
from maas_ray.serve.api.multipart import is_form, parse_form
from maas_ray.serve.api.validation import parse_json, request_error
from maas_ray.tasks import AnswerRow, RequestRow, Task

FILE = "file"  # the form's field, as in `curl -F file=@digit.png`
MAX_ROWS = 256  # a row may become much larger than its request: an image of one pixel is resized like any other
_decoder = ThreadPoolExecutor(1)  # decodes one image at a time in a process, because some take hundreds of megabytes


@dataclass(frozen=True)
class PredictBody:
    """An unread request body, and its `Content-Type`."""

    data: bytes
    content_type: str


class Head(BaseModel):
    """The fields that every answer begins with."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    model: str
    """Public model name."""
    version: str
    """The version's number."""


@dataclass(frozen=True)
class Rows:
    """A validated request.

    Args:
        rows: at least one.
        many: the rows came as `instances`, and are answered as `predictions`.
    """

    rows: list[RequestRow]
    many: bool

    @contextmanager
    def at(self, index: int) -> Iterator[None]:
        """Add the row's position to errors that are raised in the block."""
        try:
            yield
        except RequestError as error:
            field = _location(index if self.many else None, error.param)
            raise RequestError(
                f"{field}: {error.message}" if field else error.message,
                param=field,
                code=error.code,
                status=error.status,
            ) from error

    async def inputs(self, task: Task) -> list[dict[str, Any]]:
        """Each row as the tensors of a task.

        Raises:
            RequestError: the task cannot accept a row; names it.
        """
        loop = asyncio.get_running_loop()
        tensors = []
        for index, row in enumerate(self.rows):
            with self.at(index):
                tensors.append(await loop.run_in_executor(_decoder, task.to_inputs, row))
        return tensors

    def render(self, answers: Sequence[AnswerRow], head: Head) -> bytes:
        """The body of the answer.

        Raises:
            RequestError: an answer has a number that JSON cannot express.
        """
        documents = [answer.model_dump() for answer in answers]
        document = head.model_dump() | ({"predictions": documents} if self.many else documents[0])
        try:
            return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except ValueError as error:
            raise RequestError(
                "The model answered with a number that is not finite, which JSON cannot express. Request bytes at "
                f"/v2/models/{head.model}/infer.",
                code="not_finite",
            ) from error


def parse_rows(body: PredictBody, task: Task, max_rows: int = MAX_ROWS) -> Rows:
    """The rows in a body.

    Args:
        body: a form, or JSON with any other content type.
        task: the model's task.
        max_rows: most rows in a request.

    Raises:
        RequestError: the request is wrong; names the place.
    """
    if is_form(body.content_type):
        return Rows([_row(task, _form(body, task.file), None, strict=False)], many=False)
    document = parse_json(body.data)
    if not (isinstance(document, dict) and "instances" in document):
        return Rows([_row(task, document, None)], many=False)
    unknown = next((name for name in document if name != "instances"), None)
    if unknown is not None:
        raise RequestError(
            f"Unknown parameter: {unknown!r}. A body with 'instances' has no other field; put it into each instance.",
            param=unknown,
            code="unknown_parameter",
        )
    rows = document["instances"]
    if not isinstance(rows, list):
        raise RequestError(
            f"'instances' must be an array of 1 to {max_rows} rows.", param="instances", code="invalid_type"
        )
    if not 0 < len(rows) <= max_rows:
        raise RequestError(
            f"'instances' has {len(rows)} rows, but must have 1 to {max_rows}. Send several requests.",
            param="instances",
            code="invalid_value",
        )
    return Rows([_row(task, row, index) for index, row in enumerate(rows)], many=True)


def _row(task: Task, row: Any, index: int | None, *, strict: bool | None = None) -> RequestRow:
    try:
        return task.request.model_validate(row, strict=strict)
    except ValidationError as error:
        raise request_error(error, within=_location(index) or "") from error


def _location(index: int | None, field: str | None = None) -> str | None:
    """A location such as `instances[3].image`."""
    return ".".join(part for part in (None if index is None else f"instances[{index}]", field) if part) or None


def _form(body: PredictBody, file: str) -> dict[str, Any]:
    """The fields of a form, with the file as the field of the row that it is."""
    row: dict[str, Any] = {}
    for name, value in parse_form(body.data, body.content_type):
        field = file if file and name == FILE else name
        if field in row:
            raise RequestError(f"The form has the field {name!r} twice. Keep one.", param=name)
        if isinstance(value, bytes) and (not file or field != file):
            fix = f"Send the file as {FILE!r}." if file else "This model does not accept a file."
            raise RequestError(f"The form's field {name!r} is a file. {fix}", param=name, code="invalid_type")
        if isinstance(value, str) and name == FILE:
            raise RequestError(
                f"The form's field {FILE!r} is not a file. With curl: -F {FILE}=@PATH.", param=FILE, code="invalid_type"
            )
        row[field] = value
    if file and file not in row:
        raise RequestError(
            f"The form does not have a file. Send it as the field {FILE!r}.",
            param=FILE,
            code="missing_required_parameter",
        )
    return row
