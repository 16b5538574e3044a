"""Profiles add up in any order; a page holds hostile text and nothing from elsewhere."""

import json
import math
from collections.abc import Callable
from fractions import Fraction
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.data import profile
from maas_ray.data.profile import Names, Numbers, Profile
from maas_ray.settings import Settings
from maas_ray.tasks.traits import Trait
from maas_ray.views.dataset import html as page
from maas_ray.views.dataset import text as report
from maas_ray.views.dataset.dropped import _rows
from maas_ray.views.dataset.escape import escaped, escaped_bytes
from maas_ray.views.dataset.histograms import bars, edges
from maas_ray.views.dataset.origin import shown, without_secrets
from maas_ray.views.dataset.summary import NO_PROFILE, summarise
from tests.support.datasets import digits_dataset, text_dataset

FINITE = st.floats(allow_nan=False, allow_infinity=False)
HOSTILE = "<script>alert(1)</script><img src=http://evil/x onerror=y>\x1b[2J\u202e"


def of(values: list[float], names: list[str | None]) -> Profile:
    numbers = Trait("length", "tokens", np.array(values, np.float64))
    return profile.of_rows("train", [numbers, Trait("label", "label", names)])


@given(st.lists(FINITE | st.just(float("nan")), max_size=40), st.lists(st.sampled_from(["a", "b", None])), st.data())
def test_profiles_add_up_however_rows_are_cut_and_ordered(
    values: list[float], names: list[str | None], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, 40), max_size=4)))
    ends = [0, *cuts, 40]
    parts = [of(values[low:high], names[low:high]) for low, high in pairwise(ends)] + [of(values[40:], names[40:])]
    shuffled = data.draw(st.permutations(parts))

    whole = profile.to_json(of(values, names))

    assert profile.to_json(profile.merge(shuffled)) == whole
    assert profile.to_json(profile.merge([profile.merge(shuffled[:2]), profile.merge(shuffled[2:])])) == whole
    assert profile.to_json(profile.from_json(whole)) == whole


@given(st.lists(FINITE, min_size=1, max_size=50))
def test_a_number_is_in_its_bin_and_sums_are_exact(values: list[float]) -> None:
    found = of(values, [])["train", "length", "tokens"]
    assert isinstance(found, Numbers)

    assert found.total == sum(map(Fraction, values))
    assert sum(found.bins.values()) == found.count == len(values)
    for value in values:
        assert any(low <= value <= high or not 1e-299 <= abs(value) < 1e308 for low, high, _ in found.ordered())
    assert found.least <= found.quantile(0.5) <= found.most
    assert sum(bar.count for bar in bars(found, edges([found]))) == len(values)


def test_control_characters_of_a_text_are_escaped() -> None:
    assert escaped("a\x1b[2J\u202eb\n", 99) == "a\\x1b[2J\\u202eb↵"
    assert escaped("\ud800", 9) == "\\ud800"
    assert escaped("abcdef", 4) == "abc…"
    assert escaped_bytes(b"\x89PNG\r\n\x1a\n\0\0") == "a PNG image, begins 89 50 4e 47 0d 0a 1a 0a 00 00"
    assert escaped_bytes("é".encode()[:1]) == ""


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag == "img":
            assert dict(attributes)["alt"]


@pytest.mark.parametrize("make", [digits_dataset, text_dataset])
def test_a_page_has_no_scripts_and_no_external_links(
    make: Callable[..., object], settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make(settings, "some")
    summary = summarise(dataset, 3)  # type: ignore[arg-type]
    assert summary.notes == [NO_PROFILE]
    counted = {("train", "label", HOSTILE): Names(profile.Counter({HOSTILE: 2, "$x$": 1}))}
    object.__setattr__(summary, "profile", counted | of([1, 2, 3000], []))
    object.__setattr__(summary, "examples", {**summary.examples, "test": [{HOSTILE: HOSTILE}]})

    page.write(summary, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = Links()
    found.feed(text)

    assert "script" not in found.tags
    assert found.links
    assert all(link.startswith("data:") for link in found.links)
    assert "\x1b" not in text
    assert len(text) < 3_000_000
    json.dumps(report.document(summary))
    report.show(summary)
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out
    assert "OUTCOME" in out


def test_datasets_are_listed(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    report.show_datasets(settings)
    assert "none; `maas prepare SPEC` creates one" in capsys.readouterr().out
    digits_dataset(settings, "digits")

    report.show_datasets(settings, as_json=True)

    [only] = json.loads(capsys.readouterr().out)
    assert (only["name"], only["rows"]["train"], only["problem"]) == ("digits", 1437, "")


@given(st.lists(st.integers(-10_000, 10_000), min_size=1, max_size=40), st.floats(0, 1))
def test_a_quantile_of_whole_numbers_is_a_whole_one_in_its_bin(values: list[int], share: float) -> None:
    found = of([float(value) for value in values], [])["train", "length", "tokens"]
    assert isinstance(found, Numbers)

    quantile = found.quantile(share)

    assert found.whole
    assert quantile.is_integer()
    # By its definition, but for the width of a bin: a tenth of the number.
    exact = sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
    assert abs(quantile - exact) <= (abs(exact) // 10 if abs(exact) >= 100 else 0)


@pytest.mark.parametrize(("values", "whole"), [([1, 2, 300], True), ([1, 1.5, 1.5, 2], False), ([12.5, 13], False)])
def test_quantiles_of_fractions_need_not_be_whole(values: list[float], whole: bool) -> None:
    found = of(values, [])["train", "length", "tokens"]
    assert isinstance(found, Numbers)
    assert found.whole is whole


def test_small_row_groups_give_as_many_examples_as_requested(settings: Settings) -> None:
    dataset = text_dataset(settings, "some")
    most = max(dataset.group_sizes("test"))
    rows = dataset.meta.splits["test"].rows
    assert most < rows - 1

    few, more, every = (summarise(dataset, count).examples["test"] for count in (1, rows - 1, rows + 50))

    assert (len(few), len(more), len(every)) == (1, rows - 1, rows)
    assert len({row["text"] for row in every}) == rows
    assert summarise(dataset, rows - 1).examples["test"] == more


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            {"format": "csv", "path": "a.csv", "weight": 1.0, "split": None},
            {"format": "csv", "path": "a.csv"},
        ),
        ({"format": "jsonl", "path": "a", "weight": 2.0}, {"format": "jsonl", "path": "a", "weight": 2.0}),
        (
            {"format": "new", "path": "a", "token": "abc", "x": None},
            {"format": "new", "path": "a", "token": "***", "x": None},
        ),
        (
            {"format": "sql", "uri": "pg://me:${PW}@db/x", "table": "t", "query": None, "partition_column": "key"},
            {"format": "sql", "uri": "pg://me:${PW}@db/x", "table": "t", "partition_column": "key"},
        ),
    ],
)
def test_only_fields_of_a_source_that_differ_from_defaults_are_shown(
    source: dict[str, object], expected: dict[str, object]
) -> None:
    assert shown(source) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/a?X-Amz-Signature=abc&versionId=7", "https://h/a?X-Amz-Signature=***&versionId=7"),
        ("https://h/a?sv=1&sig=a%2B#t: no such file", "https://h/a?sv=1&sig=***#t: no such file"),
        ("https://me:pw@h/a", "https://me:***@h/a"),
        ("s3://b/c@d:e/f?g=h", "s3://b/c@d:e/f?g=h"),
        ("/a/b?password=is a name", "/a/b?password=is a name"),
    ],
)
def test_urls_are_shown_without_their_secrets(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


def test_a_row_that_is_recorded_twice_is_shown_with_its_excerpt(tmp_path: Path) -> None:
    columns = {"row": [7, 9], "path": ["a", "b"], "position": [1, 2]}
    names = []
    (tmp_path / "removed").mkdir()
    for name, excerpts in (("0", [b"", b""]), ("1", [b"seven", b""]), ("2", [b"", b""])):
        names.append(f"removed/{name}.parquet")
        pq.write_table(pa.table(columns | {"excerpt": excerpts}), tmp_path / names[-1], write_page_checksum=True)
    files = [SimpleNamespace(path=name) for name in names]
    dataset: Any = SimpleNamespace(uri=str(tmp_path), artifact=SimpleNamespace(files=files))

    found = _rows(dataset, {7, 9, 11}, {7, 9})

    assert {row: (some.place, some.excerpt) for row, some in found.items()} == {7: ("a:1", "seven"), 9: ("b:2", "")}
