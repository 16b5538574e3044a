"""`maas data` of datasets as `prepare` makes them: of texts, images and a table; grown, and from before profiles."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maas_ray import PrepareSpec, storage
from maas_ray.cli import app
from maas_ray.data.dataset import KIND, PreparedDataset, dataset_home
from maas_ray.data.names import POINTER
from maas_ray.data.prepare import prepare
from maas_ray.data.profile import PROFILE_FILE
from maas_ray.settings import Settings
from maas_ray.views.dataset.summary import NO_PROFILE

pytestmark = pytest.mark.usefixtures("cluster")

LONG = "plain words that say a little of something and then some more of it, as a note of a day would"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a platform of its own, which the command line has too."""
    settings = Settings(home=str(tmp_path / "home"))
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MAAS_HOME", settings.home)
    return settings


class Asked:
    """The command line, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> str:
        self.capsys.readouterr()
        app(["data", *arguments], standalone_mode=False)
        return self.capsys.readouterr().out

    def document(self, name: str, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self(name, "--json", *arguments))
        return found


@pytest.fixture
def maas_data(capsys: pytest.CaptureFixture[str], place: Settings) -> Asked:
    return Asked(capsys)


class Page(HTMLParser):
    """Tags and links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def needs_nothing(self) -> bool:
        alone = all(link.startswith("data:") for link in self.links)
        return alone and not {"script", "link", "iframe", "object"} & {*self.tags} and "url(http" not in self.text


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def note(text: str, label: str = "a", day: str = "monday") -> str:
    return json.dumps({"text": text, "label": label, "day": day})


def notes_spec(path: Path, **changes: Any) -> PrepareSpec:
    return PrepareSpec.parse(
        {
            "dataset": "notes",
            "task": {"type": "text-classification", "tokenizer": {"vocab_size": 300}, "max_length": 64},
            "sources": [{"format": "jsonl", "path": str(path)}],
            "splits": {"validation": 0.2, "test": 0.2},
            "clean": [{"step": "fix_text"}, {"step": "length", "min_words": 5}],
            "deduplicate": {"near": {}},
            "keep": ["day"],
            **changes,
        }
    )


def write_notes(path: Path) -> None:
    """60 that differ, 3 and 2 that are the same or nearly the same as one of them, 2 short, 1 empty, 2 broken."""
    words = np.random.default_rng(0).integers(0, 400, (60, 25))
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    lines = [note(text, "ab"[number % 2]) for number, text in enumerate(texts)]
    lines += [note(texts[0])] * 3 + [note(f"{texts[1]} and"), note(f"{texts[1]} or", "b")]
    lines += [note("too short"), note("short too"), note(""), "{broken", "[1]"]
    write(path, lines)


def test_texts_and_what_was_left_out_of_them(tmp_path: Path, place: Settings, maas_data: Asked) -> None:
    source = tmp_path / "in"
    write_notes(source / "a.jsonl")
    spec = notes_spec(source)
    first = prepare(spec, settings=place, parallelism=1)
    other = prepare(spec, settings=Settings(home=str(tmp_path / "other")), parallelism=5)
    assert first.artifact.read(PROFILE_FILE) == other.artifact.read(PROFILE_FILE)

    found = maas_data.document("notes", "--examples", "5")

    counts = found["counts"]
    assert (counts["read"], counts["duplicates"], counts["quarantined"]) == (70, 3, 2)
    assert counts["near_duplicates"] in (1, 2)
    assert found["sources"] == [{"format": "jsonl", "path": str(source)}]
    assert found["parent"] is None
    for split, rows in counts["kept"].items():
        assert len(found["examples"][split]) == min(rows, 5), split
        assert {row["day"] for row in found["examples"][split]} == {"monday"}
        tokens = found["profile"][split]["length"]["tokens"]
        assert tokens["count"] == rows
        assert all(value.is_integer() for value in tokens["quantiles"].values())
    assert sum(found["profile"]["train"]["label"]["label"]["counts"].values()) == counts["kept"]["train"]
    for pair in found["pairs"]["duplicate"]:
        assert pair["out"]["position"] != pair["kept"]["position"]
        assert pair["out"]["excerpt"] == pair["kept"]["excerpt"] != ""
    assert all(pair["kept"]["excerpt"] for pair in found["pairs"]["near-duplicate"])
    assert found["groups"][0]["others"] == 3
    begun = " ".join(row["excerpt"] for rows in found["left_out"].values() for row in rows)
    assert "too short" in begun
    assert "short too" in begun
    assert sum(broken["rows"] for broken in found["quarantined"]) == 2
    shown = maas_data("notes")
    assert f"jsonl {source}\n" in shown
    for heading in ("OUTCOME", "DROPPED NEAR-DUPLICATES", "QUARANTINED ROWS", "train, 3 of"):
        assert heading in shown
    page = Page(write_page(maas_data, "notes", tmp_path))
    assert page.needs_nothing()
    assert page.tags.count("img") >= 3

    # It grows: what new rows are like, is shown of the parent's; some of these `removed/` names already.
    again = json.loads((source / "a.jsonl").read_text().splitlines()[0])["text"]
    alone = json.loads((source / "a.jsonl").read_text().splitlines()[5])["text"]
    write(source / "b.jsonl", [note(again), note(alone, "b"), note(LONG, "b", "friday")])
    second = prepare(spec, settings=place)
    assert second.meta.parent == first.fingerprint
    grown = maas_data.document("notes", "--examples", "9")
    assert grown["parent"] == first.fingerprint
    assert first.fingerprint in maas_data("notes")
    pairs = grown["pairs"]["duplicate"]
    assert len(pairs) == 5
    assert all(pair["kept"] is not None for pair in pairs)
    likes = {pair["out"]["excerpt"]: pair["kept"] for pair in pairs}
    same = [kept for excerpt, kept in likes.items() if again[:30] in excerpt]
    assert [again[:30] in kept["excerpt"] for kept in same] == [True]
    [bare] = [kept for excerpt, kept in likes.items() if alone[:30] in excerpt]
    assert (bare["path"].rpartition("/")[2], bare["position"]) == ("a.jsonl", 6)
    listed = json.loads(maas_data("--json"))
    assert {(one["fingerprint"], one["parent"], one["current"]) for one in listed} == {
        (first.fingerprint[:16], "", False),
        (second.fingerprint[:16], first.fingerprint, True),
    }
    assert "notes" in maas_data()


def write_page(maas_data: Asked, name: str, directory: Path) -> Path:
    path = directory / f"{name}.html"
    assert str(path) in maas_data(name, "--html", str(path)).replace("\n", "")
    return path


def test_images_are_in_the_page(tmp_path: Path, place: Settings, maas_data: Asked) -> None:
    draws = np.random.default_rng(0)
    for label in ("dark", "light"):
        directory = tmp_path / "in" / label
        directory.mkdir(parents=True)
        for number in range(15):
            pixels = draws.integers(0, 99, (9, 12, 3), np.uint8) + (156 if label == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(directory / f"{number}.png")
    (tmp_path / "in" / "dark" / "same.png").write_bytes((tmp_path / "in" / "dark" / "0.png").read_bytes())
    (tmp_path / "in" / "dark" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    document = {
        "dataset": "shades",
        "task": {"type": "image-classification", "image_size": 8},
        "sources": [{"format": "image-folder", "path": str(tmp_path / "in")}],
        "splits": {"validation": 0.2, "test": 0.2},
    }
    prepare(PrepareSpec.parse(document), settings=place)

    found = maas_data.document("shades")

    counts = found["counts"]
    assert (counts["read"], counts["duplicates"], counts["quarantined"]) == (32, 1, 1)
    counted = found["profile"]["train"]["label"]["label"]["counts"]
    assert set(counted) == {"dark", "light"}
    assert sum(counted.values()) == counts["kept"]["train"]
    [pair] = found["pairs"]["duplicate"]
    assert {Path(pair[side]["path"]).name for side in ("out", "kept")} == {"0.png", "same.png"}
    assert "PNG" in pair["out"]["excerpt"]
    [broken] = found["quarantined"]
    assert broken["example"]["path"].endswith("broken.png")
    maas_data("shades")
    page = Page(write_page(maas_data, "shades", tmp_path))
    assert page.needs_nothing()
    assert len([link for link in page.links if link.startswith("data:image/png")]) == sum(
        min(rows, 12) for rows in counts["kept"].values()
    )


def test_a_table_by_column_and_one_from_before_profiles(tmp_path: Path, place: Settings, maas_data: Asked) -> None:
    towns = ("Ulm", "Köln", "")
    rows = [f"{number},{towns[number % 3]},{'ab'[number % 2]}" for number in range(90)]
    write(tmp_path / "t.csv", ["size,town,kind", *rows])
    document = {
        "dataset": "towns",
        "task": {"type": "tabular-classification", "target": "kind"},
        "sources": [{"format": "csv", "path": str(tmp_path / "t.csv")}],
        "splits": {"validation": 0.2, "test": 0.2},
    }
    dataset = prepare(PrepareSpec.parse(document), settings=place)

    found = maas_data.document("towns")

    train = found["profile"]["train"]
    assert set(train["column"]) == {"size", "town"}
    assert train["column"]["size"]["count"] == found["counts"]["kept"]["train"]
    missing = sum(found["profile"][split]["column"]["town"]["missing"] for split in found["profile"])
    assert missing == 30
    assert set(found["examples"]["train"][0]) >= {"size", "town"}
    assert "COLUMN (TRAIN)" in maas_data("towns")
    assert Page(write_page(maas_data, "towns", tmp_path)).needs_nothing()

    older = from_before(dataset, place, tmp_path)
    found = maas_data.document("older")
    assert (found["profile"], found["notes"]) == (None, [NO_PROFILE])
    assert found["counts"] == older.meta.counts.document()
    assert len(found["examples"]["train"]) == 3
    assert "has no profile of lengths, labels and columns" in " ".join(maas_data("older").split())
    assert Page(write_page(maas_data, "older", tmp_path)).needs_nothing()


def from_before(dataset: PreparedDataset, place: Settings, scratch: Path) -> PreparedDataset:
    """A dataset as one that was prepared before rows were counted."""
    paths = [entry.path for entry in dataset.artifact.files if entry.path != PROFILE_FILE]
    directory = dataset.artifact.fetch(scratch / "fetched", paths)
    meta = dataset.meta.document() | {"name": "older"}
    home = dataset_home(place, "older")
    older = PreparedDataset(storage.publish(directory, home, KIND, meta))
    storage.write_json(storage.join(home, POINTER), {"fingerprint": older.uri.rpartition("/")[2]})
    return older
