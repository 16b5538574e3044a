"""Predict, the plain way: one row, or several, in the task's own words; as JSON or as a form with a file.

    {"image": "<base64>"}                      → {"model": …, "version": …, "label": "7", "scores": {…}}
    {"instances": [{"image": …}, …]}           → {"model": …, "version": …, "predictions": [{"label": …}, …]}
    a multipart form with the field `file`     → as the first

Several rows are called what TensorFlow Serving, KServe and Vertex AI call them. Parsed where the model is, so that a
gateway passes a body on unread. Which words there are is the task's affair. Knows nothing of Serve.
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
MAX_ROWS = 256  # a row may become much larger than what is sent of it: an image of one pixel is made as large as any
_unfolding = ThreadPoolExecutor(1)  # one image at a time in a process: some become hundreds of megabytes


@dataclass(frozen=True)
class PredictBody:
    """A request's body, unread, and the `Content-Type` it came with."""

    data: bytes
    content_type: str


class Head(BaseModel):
    """What stands before every answer."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    model: str
    """Public model name."""
    version: str
    """The version's number."""


@dataclass(frozen=True)
class Rows:
    """A checked request.

    Args:
        rows: one or more.
        many: they came as `instances`, and are answered as `predictions`.
    """

    rows: list[RequestRow]
    many: bool

    @contextmanager
    def at(self, number: int) -> Iterator[None]:
        """Errors of one row name its place."""
        try:
            yield
        except RequestError as error:
            field = _place(number if self.many else None, error.param)
            raise RequestError(
                f"{field}: {error.message}" if field else error.message,
                param=field,
                code=error.code,
                status=error.status,
            ) from error

    async def inputs(self, task: Task) -> list[dict[str, Any]]:
        """Each row as the tensors of a task.

        Raises:
            RequestError: a row is not one the task can take; names it.
        """
        loop = asyncio.get_running_loop()
        made = []
        for number, row in enumerate(self.rows):
            with self.at(number):
                made.append(await loop.run_in_executor(_unfolding, task.to_inputs, row))
        return made

    def render(self, answers: Sequence[AnswerRow], head: Head) -> bytes:
        """The answer's body.

        Raises:
            RequestError: the model gave a number that JSON has no word for.
        """
        documents = [answer.model_dump() for answer in answers]
        document = head.model_dump() | ({"predictions": documents} if self.many else documents[0])
        try:
            return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except ValueError as error:
            raise RequestError(
                "The model answered with a number that is not finite, which JSON cannot carry. Ask for bytes, at "
                f"/v2/models/{head.model}/infer.",
                code="not_finite",
            ) from error


def parse_rows(body: PredictBody, task: Task, most: int = MAX_ROWS) -> Rows:
    """The rows in a body.

    Args:
        body: JSON, whatever type it says it has, but for a form.
        task: whose words they are in.
        most: rows that one request may have.

    Raises:
        RequestError: it is not such a request; names the place.
    """
    if is_form(body.content_type):
        return Rows([_row(task, _form(body, task.file), None, strict=False)], many=False)
    document = parse_json(body.data)
    if not (isinstance(document, dict) and "instances" in document):
        return Rows([_row(task, document, None)], many=False)
    unknown = next((name for name in document if name != "instances"), None)
    if unknown is not None:
        raise RequestError(
            f"Unknown parameter: {unknown!r}. Beside 'instances' stands nothing; give it in each of them.",
            param=unknown,
            code="unknown_parameter",
        )
    rows = document["instances"]
    if not isinstance(rows, list) or not 0 < len(rows) <= most:
        found = f"{len(rows)} of them" if isinstance(rows, list) else "something else"
        raise RequestError(
            f"'instances' is an array of 1 to {most} rows; found {found}. Send more in further requests.",
            param="instances",
            code="invalid_value",
        )
    return Rows([_row(task, row, number) for number, row in enumerate(rows)], many=True)


def _row(task: Task, row: Any, number: int | None, *, strict: bool | None = None) -> RequestRow:
    try:
        return task.request.model_validate(row, strict=strict)
    except ValidationError as error:
        raise request_error(error, within=_place(number) or "") from error


def _place(number: int | None, field: str | None = None) -> str | None:
    """`instances[3].image`"""
    return ".".join(part for part in (None if number is None else f"instances[{number}]", field) if part) or None


def _form(body: PredictBody, file: str) -> dict[str, Any]:
    """The fields of a form; the file under the name of the field that it fills."""
    row: dict[str, Any] = {}
    for name, value in parse_form(body.data, body.content_type):
        field = file if file and name == FILE else name
        if field in row:
            raise RequestError(f"The form's field {name!r} stands twice; keep one.", param=name)
        if isinstance(value, bytes) and (not file or field != file):
            takes = f"a file is sent as {FILE!r}" if file else "this model takes no file"
            raise RequestError(f"The form's field {name!r} is a file, but {takes}.", param=name)
        if isinstance(value, str) and name == FILE:
            raise RequestError(f"The form's field {FILE!r} is no file; with curl: -F {FILE}=@PATH.", param=FILE)
        row[field] = value
    if file and file not in row:
        raise RequestError(
            f"The form has no file; send it as the field {FILE!r}.", param=FILE, code="missing_required_parameter"
        )
    return row
