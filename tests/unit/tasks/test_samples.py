"""The row that `maas deploy` suggests to try is one that the model answers."""

import asyncio
import json

import numpy as np
import pytest

from maas_ray.serve.api.predict import PredictBody, parse_rows
from maas_ray.tasks import TASKS, Task
from tests.support import speech
from tests.support.bundles import image_task, series_task, table_task, text_task

SAMPLES = {
    "image": (image_task(), {"image": [[0, 255], [255, 0]]}),
    "table": (table_task(), {"area": 0, "town": ""}),
    "series": (series_task(), {"values": [[0, 0], [0, 0], [0, 0]]}),  # a context of three steps with one covariate
    "text": (text_task(), {"prompt": "Hello"}),
}


def inputs(task: Task) -> dict[str, np.ndarray]:
    """The tensors of the sample, by the path of `/v1/models/NAME/predict`."""
    row = json.dumps(type(task).request.sample(task.inputs)).encode()
    rows = parse_rows(PredictBody(row, "application/x-www-form-urlencoded"), task)  # the type that curl sends
    (tensors,) = asyncio.run(rows.inputs(task))
    return {name: np.stack([value]) for name, value in tensors.items()}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_answered(name: str) -> None:
    task, row = SAMPLES[name]
    assert type(task).request.sample(task.inputs) == row
    tensors = inputs(task)
    if task.kind == "predict":
        outputs = task.predict(task.networks[0]().build(task).eval(), tensors)
        assert task.to_answer({key: value[0] for key, value in outputs.items()})


def test_the_sample_of_speech_is_a_second_of_silence() -> None:
    task = speech.speech_task()
    (audio,) = inputs(task).values()
    assert audio.shape == (1, 16_000)
    assert not audio.any()


def test_the_samples_of_texts_are_valid() -> None:
    texts = [kind for kind in TASKS if "text" in kind.request.model_fields]
    assert len(texts) == 3  # embeddings, classes, classes of tokens
    for kind in texts:
        assert kind.request.sample([]) == {"text": "Hello"}
        assert kind.request.model_validate({"text": "Hello"}).text == "Hello"
