"""Traits that tasks report of encoded rows, and their descriptions of stored rows."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from maas_ray.tasks import Task
from maas_ray.tasks.rows import REST
from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognitionSpec
from maas_ray.tasks.tables.classification import TabularClassificationSpec
from maas_ray.tasks.tables.forecasting import TimeSeriesForecastingSpec
from maas_ray.tasks.tables.regression import TabularRegressionSpec
from maas_ray.tasks.task import TaskSpec
from maas_ray.tasks.text.classification import TextClassificationSpec
from maas_ray.tasks.text.embeddings import FeatureExtractionSpec
from maas_ray.tasks.text.token_classification import TokenClassificationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from maas_ray.tasks.traits import Curve, Picture
from tests.support import speech

Said = dict[tuple[str, str], list[Any]]
TOKENIZER = FittedTokenizer(vocab_size=300)
HOUSES = [{"rooms": "3", "town": "Köln"}, {"rooms": None, "town": "Bonn"}, {"rooms": "5", "town": None}]


def table(spec: TaskSpec, target: str, targets: list[str]) -> tuple[TaskSpec, list[dict[str, Any]]]:
    return spec, [{target: value, REST: row} for value, row in zip(targets, HOUSES, strict=True)]


def regression() -> tuple[TaskSpec, list[dict[str, Any]]]:
    return table(TabularRegressionSpec(target="price"), "price", ["100", "200", "2.5"])


def classification() -> tuple[TaskSpec, list[dict[str, Any]]]:
    return table(TabularClassificationSpec(target="kind"), "kind", ["flat", "house", "flat"])


def texts() -> tuple[TaskSpec, list[dict[str, Any]]]:
    rows = [{"text": "so good", "label": "yes"}, {"text": "bad", "label": "no"}]
    return TextClassificationSpec(tokenizer=TOKENIZER, max_length=32), rows


def tokens() -> tuple[TaskSpec, list[dict[str, Any]]]:
    rows = [{"tokens": ["Ada", "met", "Bob"], "tags": ["B-PER", "O", "B-PER"]}, {"tokens": ["No"], "tags": ["O"]}]
    return TokenClassificationSpec(tokenizer=TOKENIZER, max_length=32), rows


def pairs() -> tuple[TaskSpec, list[dict[str, Any]]]:
    rows = [{"anchor": "add both", "positive": "a + b"}, {"anchor": "close", "positive": "file.close()"}]
    return FeatureExtractionSpec(tokenizer=TOKENIZER, max_length=32), rows


def series() -> tuple[TaskSpec, list[dict[str, Any]]]:
    spec = TimeSeriesForecastingSpec(target="y", covariates=("x",), context_length=4, horizon=2)
    return spec, [{"y": list(range(8)), "x": [0] * 8}]


def clips() -> tuple[TaskSpec, list[dict[str, Any]]]:
    said = ["one two", "three"]
    rows = [{"audio": speech.file_of(speech.tone(second)), "transcript": text} for second, text in enumerate(said, 1)]
    return AutomaticSpeechRecognitionSpec(), rows


def encoded(make: Callable[[], tuple[TaskSpec, list[dict[str, Any]]]]) -> tuple[Task, Said, list[dict[str, Any]]]:
    """The task; its traits by role and name; each stored row in its words."""
    spec, raw = make()
    rows = [spec.parse_row(row) for row in raw]
    task = spec.fit([row for row in rows if row is not None])
    columns = task.encode(rows)
    said = {
        (trait.role, trait.name): trait.values.tolist() if isinstance(trait.values, np.ndarray) else [*trait.values]
        for trait in task.traits(rows, columns)
    }
    stored = {name: np.asarray(columns[name]) for name in task.stored}
    count = len(stored[next(iter(stored))])
    return (
        task,
        said,
        [task.describe({name: values[place] for name, values in stored.items()}) for place in range(count)],
    )


COLUMNS: Said = {("column", "rooms"): [3.0, None, 5.0], ("column", "town"): ["Köln", "Bonn", None]}
ROOMS = [3, 4, 5]  # the missing value is filled with the mean of 3 and 5


@pytest.mark.parametrize(
    ("make", "expected", "described"),
    [
        (regression, {("target", "price"): [100.0, 200.0, 2.5], **COLUMNS}, {"price": [100, 200, 2.5], "rooms": ROOMS}),
        (
            classification,
            {("label", "label"): ["flat", "house", "flat"], **COLUMNS},
            {"kind": ["flat", "house", "flat"], "rooms": ROOMS},
        ),
        (texts, {("label", "label"): ["yes", "no"]}, {"text": ["so good", "bad"], "label": ["yes", "no"]}),
        (
            tokens,
            {("label", "tag"): ["B-PER", "O", "B-PER", "O"], ("length", "tokens"): [3, 1]},
            {"tokens": [["Ada", "met", "Bob"], ["No"]], "tags": [["B-PER", "O", "B-PER"], ["O"]]},
        ),
        (pairs, {}, {"anchor": ["add both", "close"], "positive": ["a + b", "file.close()"]}),
        (series, {("length", "steps"): [8], ("target", "y"): [4, 5, 6]}, {}),
        (
            clips,
            {("length", "seconds"): [1, 2], ("length", "characters of the transcript"): [7, 5]},
            {"transcript": ["one two", "three"]},
        ),
    ],
)
def test_traits_describe_rows_before_encoding_and_stored_rows_decode_to_them(
    make: Callable[[], Any], expected: Said, described: dict[str, list[Any]]
) -> None:
    _, said, shown = encoded(make)

    for trait, values in expected.items():
        assert [None if isinstance(value, float) and math.isnan(value) else value for value in said[trait]] == values, (
            trait
        )
    for name, values in described.items():
        assert [row[name] for row in shown] == values, name


def test_token_lengths_count_the_stored_tokens() -> None:
    spec, raw = pairs()
    task = spec.fit(raw)
    columns = task.encode(raw)

    said = {trait.name: trait.values for trait in task.traits(raw, columns)}

    assert [*said] == ["tokens of the anchor", "tokens of the positive"]
    for name in ("anchor", "positive"):
        assert np.array_equal(said[f"tokens of the {name}"], columns[f"{name}_length"])
        assert all(said[f"tokens of the {name}"] > 0)


def test_a_window_is_described_as_curves_in_the_users_unit() -> None:
    _, _, shown = encoded(series)

    assert [*shown[0]] == ["y", "x", "y, next 2"]
    assert all(isinstance(value, Curve) for value in shown[0].values())
    assert [row["y"].values.tolist() for row in shown] == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert [row["y, next 2"].values.tolist() for row in shown] == [[4, 5], [5, 6], [6, 7]]


def test_stored_features_of_a_clip_are_described_as_a_picture_of_its_length() -> None:
    task, _, shown = encoded(clips)

    short, long = (row["audio"] for row in shown)
    assert isinstance(short, Picture)
    assert short.pixels.dtype == np.uint8
    assert short.pixels.shape[0] == long.pixels.shape[0] == task.stored["features"].shape[1]
    assert 1.9 < long.pixels.shape[1] / short.pixels.shape[1] < 2.1
    assert short.note == f"{short.pixels.shape[0]} features over {short.pixels.shape[1]} frames"
