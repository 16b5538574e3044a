"""Rows are assigned to splits by content, by group, by label, or as a column names it."""

import math
from decimal import Decimal

import numpy as np
import pytest

from maas_ray.data.splits.assignment import hashed_split, named, rekeyed, split_of, stratum_of
from maas_ray.data.splits.hashing import sort_key
from maas_ray.data.splits.spec import Splits
from maas_ray.errors import InvalidError, SpecError
from tests.support.errors import raises

DIGESTS = [bytes([number]) * 32 for number in range(0, 250, 10)]


def test_the_hash_of_the_content_decides_by_default() -> None:
    splits = Splits(validation=0.3, test=0.2)
    assert [split_of(splits, "", digest) for digest in DIGESTS] == [hashed_split(d, (0.3, 0.2)) for d in DIGESTS]


def test_rows_of_a_group_fall_into_one_split() -> None:
    splits = Splits(validation=0.3, test=0.2, group="site")
    by_site = {site: {split_of(splits, str(site), digest) for digest in DIGESTS} for site in range(60)}
    assert all(len(numbers) == 1 for numbers in by_site.values())
    assert set.union(*by_site.values()) == {0, 1, 2}
    with raises(InvalidError, "group_missing", "site"):
        split_of(splits, "", DIGESTS[0])


@pytest.mark.parametrize("column", ["group", "stratify", "column"])
def test_a_name_does_not_depend_on_the_type_that_a_file_gives_its_column(column: str) -> None:
    splits = Splits.parse({column: "site"})
    seventeen = [17, 17.0, "17", "17.0", " 17 ", b"17", np.int64(17), np.float32(17), Decimal("17.00")]
    assert {named(splits, {"keep/site": site}) for site in seventeen} == {"17"}
    assert {named(splits, {"keep/site": site}) for site in (None, math.nan, "", "NaN", b"")} == {""}
    assert {named(splits, {"keep/site": site}) for site in (True, "True", "true")} == {"true"}
    assert named(splits, {"keep/site": Decimal("12345678901234567890")}) == "12345678901234567890"  # not as a float
    assert named(splits, {"keep/site": [1, "a"]}) == "[1, 'a']"
    assert named(Splits(), {"keep/site": 17}) == ""


@pytest.mark.parametrize(
    ("name", "number"), [("train", 0), ("Validation", 1), (" dev ", 1), ("val", 1), ("TEST", 2), (b"test", 2)]
)
def test_a_column_names_the_split(name: object, number: int) -> None:
    splits = Splits(column="fold")
    assert split_of(splits, named(splits, {"keep/fold": name}), DIGESTS[0]) == number


def test_an_unknown_split_in_a_column_is_an_error() -> None:
    with raises(InvalidError, "unknown_split", "fold", "'holdout'", "train, validation, test"):
        split_of(Splits(column="fold"), "holdout", DIGESTS[0])


def test_group_stratify_and_column_exclude_each_other() -> None:
    with raises(SpecError, "exclusive_fields", "group and column"):
        Splits.parse({"group": "a", "column": "b"})


def test_splits_must_leave_rows_to_train_on() -> None:
    with raises(SpecError, "nothing_to_train_on", 0.6, 0.4):
        Splits.parse({"validation": 0.6, "test": 0.4})


def test_the_stratum_is_the_label_and_leaves_the_split_open() -> None:
    splits = Splits(stratify="label")
    assert split_of(splits, "3", DIGESTS[0]) == 0
    assert len({stratum_of(splits, label) for label in ("3", "4", "")}) == 3
    assert stratum_of(Splits(), "") is None


def test_a_key_keeps_its_content_in_another_split() -> None:
    keys = np.array([sort_key(0, digest) for digest in DIGESTS])
    for split in (1, 2):
        expected = [sort_key(split, digest) for digest in DIGESTS]
        assert rekeyed(keys, np.full(len(keys), split, np.int8)).tolist() == expected
