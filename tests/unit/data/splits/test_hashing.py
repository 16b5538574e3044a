import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maas_ray.data.splits.assignment import hashed_split
from maas_ray.data.splits.hashing import SPLIT_BITS, content_digest, shuffled, sort_key


def digest(value: object) -> bytes:
    return content_digest({"value": value}, ("value",))


def test_digest_tells_types_shapes_and_columns_apart() -> None:
    pixels = np.zeros((2, 3, 1), np.uint8)
    values = ["1", b"1", 1, 1.5, None, pixels, pixels.reshape(3, 2, 1), pixels.astype(np.int8)]
    assert len({digest(value) for value in values}) == len(values)
    assert content_digest({"a": "x", "b": "yz"}, ("a", "b")) != content_digest({"a": "xy", "b": "z"}, ("a", "b"))


def test_digest_depends_on_the_given_columns_alone() -> None:
    assert content_digest({"a": "x", "path": "1"}, ("a",)) == content_digest({"a": "x", "path": "2"}, ("a",))


def test_digest_does_not_change_between_versions() -> None:
    # Splits and fingerprints rest on it: a test row of today must be a test row tomorrow.
    assert digest("text").hex() == "8b9376ad20db60bbe23b314a803cb528956994e1d3fdcbd9d20aac9f2ed10002"


def test_digest_of_half_a_surrogate_pair_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        digest("\ud800")


@pytest.mark.parametrize("value", [["a", "\ud83d"], {"x": "\udc00"}, {"\ud83d": 1}])
def test_half_a_pair_inside_a_list_or_an_object_is_a_value_error(value: object) -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        digest(value)
    assert digest(["😀"]) != digest(["😁"])


def test_splits_have_their_shares() -> None:
    numbers = [hashed_split(digest(str(value)), (0.1, 0.2)) for value in range(20_000)]
    shares = np.bincount(numbers, minlength=3) / len(numbers)
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


def test_a_split_of_no_share_gets_nothing() -> None:
    assert {hashed_split(digest(str(value)), (0.0, 0.5)) for value in range(1000)} == {0, 2}


def test_sort_keys_order_by_split_then_content() -> None:
    low, high = b"\0" * 32, b"\xff" * 32
    keys = [sort_key(split, some) for split in range(4) for some in (low, high)]
    assert keys == sorted(keys)
    assert [key >> SPLIT_BITS for key in keys] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert max(keys) < 2**63


@settings(deadline=None)
@given(st.integers(1, 3000), st.text(max_size=5))
def test_shuffle_is_a_permutation(count: int, seed: str) -> None:
    places = shuffled(np.arange(count), count, seed)
    assert np.array_equal(np.sort(places), np.arange(count))


@settings(deadline=None)
@given(st.integers(1, 2**40), st.lists(st.integers(0, 2**40 - 1), max_size=20))
def test_shuffle_is_the_same_wherever_it_is_computed(count: int, places: list[int]) -> None:
    some = np.array([place % count for place in places], dtype=np.int64)
    together = shuffled(some, count, "seed")
    assert all(0 <= place < count for place in together)
    assert together.tolist() == [int(shuffled(some[n : n + 1], count, "seed")[0]) for n in range(len(some))]


def test_shuffle_mixes_and_depends_on_the_seed() -> None:
    count = 10_000
    one, two = shuffled(np.arange(count), count, "0/train"), shuffled(np.arange(count), count, "1/train")
    assert not np.array_equal(one, two)
    # Independent uniform orders have no correlation with the old index, and neighbours a third of the length apart.
    for order in (one, two):
        assert abs(np.corrcoef(np.arange(count), order)[0, 1]) < 0.03
        assert np.abs(np.diff(order)).mean() / count == pytest.approx(1 / 3, abs=0.02)
        assert (order == np.arange(count)).sum() < 10
