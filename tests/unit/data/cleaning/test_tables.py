"""Missing values and outliers: fitted to the last bit in any order, and what they make of cells."""

import math
import random
from statistics import fmean, median, pstdev
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.data.cleaning import Dropped, Notes
from maas_ray.data.cleaning.missing import Missing
from maas_ray.data.cleaning.outliers import Outliers
from maas_ray.errors import DataError, InvalidError, SpecError
from maas_ray.tasks.rows import REST, Row
from tests.support.errors import raises

NOTHING = (None, math.nan, "", "  ", "NaN")


def rows(values: list[Any]) -> list[Row]:
    return [{REST: {"x": value}, "target": 1} for value in values]


def cleaned(step: Any, value: Any) -> Any:
    return step.clean(rows([value])[0], Notes())[REST]["x"]


@pytest.mark.parametrize("nothing", NOTHING)
def test_a_row_without_a_value_is_dropped(nothing: Any) -> None:
    with pytest.raises(Dropped, match=r"^no x$"):
        Missing().clean(rows([nothing])[0], Notes())
    with pytest.raises(Dropped, match=r"^no x$"):
        Missing(columns=("x",)).clean(rows([nothing])[0], Notes())
    assert Missing(columns=("target",)).clean(rows([nothing])[0], Notes()) is not None


@pytest.mark.parametrize("there", [0, 0.0, False, "0", "NA", b"x", [0]])
def test_zero_false_and_nonempty_values_are_not_missing(there: Any) -> None:
    row = rows([there])[0]

    assert Missing().clean(row, Notes()) is row


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize(
    ("strategy", "filling"), [("mean", 3.5), ("median", 2.75), ("mode", "2.0"), ("constant", "none")]
)
def test_a_value_is_filled_with_a_statistic_of_training(strategy: Any, filling: Any, nothing: Any) -> None:
    step = Missing(columns=("x",), strategy=strategy, fill_value="none" if strategy == "constant" else None)
    fitted = step.fit(rows(["2.0", nothing, "3.5", 6.5, "2.0"]))
    notes = Notes()

    assert fitted.clean(rows([nothing])[0], notes)[REST]["x"] == filling
    assert notes == {"filled x": 1}
    assert cleaned(fitted, "7") == "7"
    assert fitted.fits == step.fits == (strategy != "constant")


def test_a_filled_column_that_is_also_kept_is_filled_in_both() -> None:
    step = Missing(columns=("x",), strategy="constant", fill_value=0)

    assert step.clean({"keep/x": None, REST: {"x": None}}, Notes()) == {"keep/x": 0, REST: {"x": 0}}


def test_the_mode_is_the_lowest_of_equally_common_values() -> None:
    for values in ([2, 1.0, 1, 2.0], [2.0, 1, 1.0, 2]):
        fitted = Missing(columns=("x",), strategy="mode").fit(rows(values)).fitted
        assert fitted == {"x": 1}
        assert isinstance(fitted["x"], int)
    assert Missing(columns=("x",), strategy="mode").fit(rows(["b", "a"])).fitted == {"x": "a"}


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE, min_size=1, max_size=60), st.randoms())
@pytest.mark.parametrize("strategy", ["mean", "median", "mode"])
def test_filled_values_do_not_depend_on_the_order(strategy: Any, values: list[float], drawn: random.Random) -> None:
    step = Missing(columns=("x",), strategy=strategy)
    mixed = drawn.sample(values, len(values))

    with np.errstate(over="ignore"):
        assert repr(step.fit(rows(values)).fitted) == repr(step.fit(rows(mixed)).fitted)


MODERATE = st.floats(-1e150, 1e150)


@given(st.lists(MODERATE, min_size=2, max_size=60, unique=True), st.randoms())
@pytest.mark.parametrize("method", ["iqr", "zscore", "mad"])
def test_fences_do_not_depend_on_the_order(method: Any, values: list[float], drawn: random.Random) -> None:
    step = Outliers(columns=("x",), method=method)
    mixed = drawn.sample(values, len(values))

    def fitted(some: list[float]) -> str:
        try:
            return repr(step.fit(rows(some)).fitted)
        except DataError as error:
            return str(error)

    assert fitted(values) == fitted(mixed)


def test_statistics_equal_those_of_python_and_numpy() -> None:
    drawn = np.random.default_rng(0).normal(100, 1e-3, 5000)

    assert Missing(columns=("x",), strategy="mean").fit(rows(list(drawn))).fitted == {"x": fmean(drawn)}
    assert Missing(columns=("x",), strategy="median").fit(rows(list(drawn))).fitted == {"x": median(drawn)}
    low, high = Outliers(columns=("x",), method="zscore").fit(rows(list(drawn))).fitted["x"]
    assert (high - low) / 6 == pytest.approx(pstdev(drawn), rel=1e-9)
    quartiles = np.quantile(drawn, [0.25, 0.75])
    reach = 1.5 * (quartiles[1] - quartiles[0])
    assert Outliers(columns=("x",)).fit(rows(list(drawn))).fitted["x"] == pytest.approx(
        (quartiles[0] - reach, quartiles[1] + reach)
    )


def test_huge_numbers_have_a_deviation() -> None:
    fitted = Outliers(columns=("x",), method="zscore", threshold=0.5).fit(rows([1e300, -1e300])).fitted

    assert fitted == {"x": (-5e299, 5e299)}


@pytest.mark.parametrize("method", ["iqr", "zscore", "mad"])
def test_outliers_are_dropped_or_clipped(method: Any) -> None:
    training = rows([*map(str, range(1, 101)), None])
    drop = Outliers(columns=("x",), method=method).fit(training)
    clip = Outliers(columns=("x",), method=method, action="clip").fit(training)
    low, high = clip.fitted["x"]

    assert cleaned(drop, "50") == "50"
    assert cleaned(drop, None) is None
    with pytest.raises(Dropped, match=r"^x is an outlier$"):
        cleaned(drop, "1000")
    assert cleaned(clip, 1000) == high
    assert cleaned(clip, "-1000") == low
    assert cleaned(clip, cleaned(clip, 1000)) == high


@pytest.mark.parametrize(
    ("values", "code", "named"),
    [
        (["1", "Paris"], "not_a_number", ["outliers", "'x'", "'Paris'"]),
        ([None], "column_empty", ["outliers", "'x'"]),
        ([1, 1, 1, 1, 9], "no_spread", ["outliers", "'x' are 1;", "`method: zscore`"]),
        ([math.inf], "not_finite", ["outliers", "'x'", "infinite"]),
    ],
)
def test_a_column_that_cannot_be_fitted_is_an_error(values: list[Any], code: str, named: list[str]) -> None:
    with raises(DataError, code, *named):
        Outliers(columns=("x",)).fit(rows(values))


def test_a_missing_column_is_an_error_that_lists_columns() -> None:
    with raises(DataError, "column_missing", "missing: ", "'y'", "target, x"):
        Missing(columns=("y",), strategy="mean").fit(rows([1]))
    with raises(InvalidError, "column_missing", "'y'", "target, x"):
        Missing(columns=("y",)).clean(rows([1])[0], Notes())


def test_a_text_among_numbers_is_an_error_of_its_row() -> None:
    fitted = Outliers(columns=("x",)).fit(rows([1, 2, 3]))

    with raises(InvalidError, "not_a_number", "'x'", "'many'"):
        cleaned(fitted, "many")


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"strategy": "mean"}, "columns_missing", "columns: "),
        ({"strategy": "constant", "columns": ["x"]}, "fill_value_mismatch", "fill_value: "),
        ({"strategy": "drop", "fill_value": 1}, "fill_value_mismatch", "fill_value: "),
    ],
)
def test_a_contradictory_spec_is_refused(fields: dict[str, Any], code: str, field: str) -> None:
    with raises(SpecError, code, field):
        Missing.parse(fields)
