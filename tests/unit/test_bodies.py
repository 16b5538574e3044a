"""A request with a million mistakes is refused for the first: pydantic would keep a record of each."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from maas_ray.bodies import Body, decoded_base64
from maas_ray.serve.api.open_inference.tensors import InferDocument
from maas_ray.serve.api.openai.requests import ChatBody, CompletionBody
from maas_ray.tasks.text.generation import TextRow
from maas_ray.tasks.vision.requests import ImageRow

MANY = 1000
FIELDS = {f"field{number}": 1 for number in range(MANY)}
TENSOR = {"name": "x", "datatype": "FP32", "shape": ["1"] * MANY}


class Biases(Body):
    """A dict of numbers."""

    biases: dict[str, float] | None = None


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        (Biases, {"biases": {str(number): "x" for number in range(20_000)}}),
        (ChatBody, {"model": "m", "messages": [1] * MANY}),
        (ChatBody, {"model": "m", "messages": [{"role": "user", "content": [1] * MANY}]}),
        (ChatBody, {"model": "m", "messages": [{"role": "user", "content": "a", **FIELDS}]}),
        (CompletionBody, {"model": "m", "prompt": [{}] * MANY}),
        (CompletionBody, {"model": "m", "prompt": [[{}] * MANY] * MANY}),
        (CompletionBody, {"model": "m", "stop": [1] * MANY}),
        (InferDocument, {"inputs": [1] * MANY}),
        (InferDocument, {"inputs": [TENSOR] * MANY}),
        (InferDocument, {"inputs": [], **FIELDS}),
        (ImageRow, {"image": [[300] * MANY] * MANY}),
        (ImageRow, {"image": [[1]], **FIELDS}),
        (TextRow, {"prompt": "a", "stop": [1] * MANY}),
    ],
)
def test_refusing_a_body_costs_no_more_than_reading_it(kind: type[Body], document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(document)
    assert caught.value.error_count() <= 5
    assert len(str(caught.value)) < 5000


def test_large_valid_bodies_are_accepted() -> None:
    assert Biases.model_json_schema()["properties"]["biases"]["anyOf"][0]["type"] == "object"
    assert len(Biases.model_validate({"biases": {str(number): 1 for number in range(5000)}}).biases or {}) == 5000
    assert (
        len(ChatBody.model_validate({"model": "m", "messages": [{"role": "user", "content": "a"}] * MANY}).messages)
        == MANY
    )


@pytest.mark.parametrize("text", ["AAEC", "AA\r\nEC\n", "data:audio/wav;base64,AAEC", "data:;base64,\nAAEC"])
def test_base64_may_be_folded_or_a_data_url(text: str) -> None:
    assert decoded_base64(text) == b"\0\1\2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("AAE", "Incorrect padding"),
        ("AA-_", "Only base64 data is allowed"),
        ("ä", "only ASCII characters"),
        ("data:image/png,AAEC", "data:TYPE;base64,"),
        ("data:AAEC", "data:TYPE;base64,"),
    ],
)
def test_text_that_is_not_base64_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        decoded_base64(text)
