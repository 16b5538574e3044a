"""A task that is fitted on totals of parts is the task that is fitted on all rows, however they are cut."""

import pickle
import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.own import Label, ModuleTask, Tensor
from maas_ray.tasks import Row
from maas_ray.tasks.fitting import ExactMoments, SummedTaskSpec
from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognitionSpec
from maas_ray.tasks.tables.classification import TabularClassificationSpec
from maas_ray.tasks.tables.forecasting import TimeSeriesForecastingSpec
from maas_ray.tasks.text.classification import TextClassificationSpec
from maas_ray.tasks.text.token_classification import TokenClassificationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from maas_ray.tasks.vision.classification import ImageClassification, ImageClassificationSpec
from tests.support import speech

SMALL = FittedTokenizer(vocab_size=270)


class Kinds(ModuleTask):
    features = {"x": Tensor("float32", ())}
    targets = {"kind": Label(), "size": Label()}
    answers = {"kind": Tensor("str")}

    def row_loss(self, output: Any, **targets: Any) -> Any: ...

    def decode(self, output: Any) -> Any: ...


def images() -> list[Row]:
    """Images have several sizes, and a few are coloured."""
    drawn = np.random.default_rng(0)
    shapes = [(5 + number % 3, 7, 3 if number % 9 == 0 else 1) for number in range(40)]
    return [
        {"image": drawn.integers(0, 256, shape, np.uint8), "label": f"{number % 4}"}
        for number, shape in enumerate(shapes)
    ]


def clips() -> list[Row]:
    words = ["one two", "three", "four five six", "seven eight", "nine zero", "six six"]
    return [{"audio": speech.spoken(text), "transcript": text} for text in words]


def series() -> list[Row]:
    drawn = np.random.default_rng(0)
    return [{"values": drawn.normal(1e6, 1e-3, (10 + number, 2))} for number in range(30)]


CASES: dict[str, tuple[SummedTaskSpec, list[Row]]] = {
    "text": (TextClassificationSpec(tokenizer=SMALL), [{"text": f"text {n}", "label": str(n % 7)} for n in range(50)]),
    "tokens": (
        TokenClassificationSpec(tokenizer=SMALL),
        [{"tokens": [f"a{n}", "b"], "tags": ["O", f"B-{n % 5}"]} for n in range(50)],
    ),
    "table": (
        TabularClassificationSpec(target="y"),
        [{"features": {"a": float(n), "b": f"c{n % 3}"}, "target": f"{n % 9}"} for n in range(50)],
    ),
    "series": (
        TimeSeriesForecastingSpec(target="y", covariates=("z",), context_length=4, horizon=2),
        series(),
    ),
    "images": (ImageClassificationSpec(), images()),
    "speech": (AutomaticSpeechRecognitionSpec(), clips()),
    "own": (
        Kinds.spec_type.parse({"type": "here:Kinds"}),
        [{"kind": str(n % 3), "size": "ab"[n % 2]} for n in range(9)],
    ),
}  # fmt: skip


def parts_of(rows: list[Row], rng: random.Random) -> Iterator[list[Row]]:
    cuts = sorted(rng.choices(range(len(rows) + 1), k=4))
    for low, high in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        yield rows[low:high]


def fitted_in_parts(spec: SummedTaskSpec, rows: list[Row], seed: int) -> Any:
    """As the pipeline does it: empty totals travel to a worker, and filled ones back, in any order."""
    rng = random.Random(seed)
    sent, parts = pickle.dumps(spec.totals()), []
    for part in parts_of(rows, rng):
        totals = pickle.loads(sent)
        for row in part:
            totals.add(row)
        parts.append(pickle.loads(pickle.dumps(totals.detached())))
    rng.shuffle(parts)
    totals = spec.totals()
    for one in parts:
        totals.merge(one)
    return spec.fitted(spec.fit_sample(iter(rows)), totals)


def state_of(task: Any, directory: Path) -> tuple[Any, dict[str, bytes]]:
    directory.mkdir()
    state = task.save_state(directory)
    return state, {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("name", CASES)
def test_parts_add_up_to_the_whole(name: str, tmp_path: Path) -> None:
    spec, rows = CASES[name]
    whole = state_of(spec.fit(iter(rows)), tmp_path / "whole")

    for seed in range(3):
        assert state_of(fitted_in_parts(spec, rows, seed), tmp_path / f"{seed}") == whole


@pytest.mark.parametrize("tokenizer", [True, False])
def test_a_processor_counts_labels_where_the_rows_are(tokenizer: bool, tmp_path: Path) -> None:
    directory = speech.wav2vec2(tmp_path / "model", tokenizer=tokenizer)
    spec = AutomaticSpeechRecognitionSpec(processor=str(directory), case="upper")
    rows = [row | {"transcript": row["transcript"].upper()} for row in clips()]
    whole = spec.fit(iter(rows))

    assert fitted_in_parts(spec, rows, 0).state == whole.state
    assert len(pickle.dumps(spec.totals().detached())) < 1000  # the tokenizer does not travel back


def test_pixel_statistics_are_those_of_exact_arithmetic() -> None:
    task = ImageClassificationSpec().fit(images())
    assert isinstance(task, ImageClassification)
    coloured = [np.broadcast_to(row["image"], (*row["image"].shape[:2], 3)) for row in images()]
    for channel in range(3):
        pixels = [[Fraction(int(value), 255) for value in image[..., channel].flat] for image in coloured]
        means = [sum(values) / len(values) for values in pixels]
        squares = [sum(value**2 for value in values) / len(values) for values in pixels]
        mean = sum(means) / len(means)
        assert task.features.mean[channel] == float(mean)
        assert task.features.std[channel] == pytest.approx(
            float(sum(squares) / len(squares) - mean**2) ** 0.5, rel=1e-15
        )
    assert (task.features.height, task.features.width) == (5, 7)  # 14 of 40 images


FINITE = st.floats(-1e300, 1e300)


@given(st.lists(FINITE, min_size=1, max_size=40), st.integers(0, 40))
def test_moments_are_exact(values: list[float], cut: int) -> None:
    columns = np.array(values).reshape(-1, 1)
    moments, rest = ExactMoments(1), ExactMoments(1)
    moments.add(columns[:cut])
    rest.add(columns[cut:])
    moments.merge(rest)

    assert moments.mean == [float(sum(map(Fraction, values)) / len(values))]
    assert moments.std == [pytest.approx(pstdev(map(Fraction, values)), rel=1e-15) if len({*values}) > 1 else 1.0]


def test_a_spread_far_below_the_level_is_measured() -> None:
    values = [1e9 + number * 1e-6 for number in range(1000)]
    moments = ExactMoments(1)
    moments.add(np.array(values).reshape(-1, 1))

    assert moments.mean == [fmean(values)]
    assert moments.std == [pytest.approx(pstdev(values), rel=1e-15)]
