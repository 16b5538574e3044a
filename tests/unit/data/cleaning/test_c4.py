"""The rules of C4: lines of prose, whole pages and bad words."""

import pickle
from pathlib import Path

import pytest

from maas_ray.data.cleaning import Notes
from maas_ray.data.cleaning.c4 import C4Quality
from tests.support.cleaning import fate

PAGE = """Home | About
The first sentence of this page is here.[1] "And here is another one."
Our site uses cookies to make everything better for you.
Please enable Javascript to see this page as it is.
too short.
The third sentence, on a line of its own, ends here!
This line has no full stop at its end
And this one does not really end..."""


def test_c4_keeps_lines_of_prose() -> None:
    notes = Notes()
    row = C4Quality().clean({"text": PAGE, "label": "Menu"}, notes)

    assert row == {
        "text": 'The first sentence of this page is here. "And here is another one."\n'
        "The third sentence, on a line of its own, ends here!",
        "label": "Menu",
    }
    assert notes == {"removed lines": 1}
    assert C4Quality().clean(row, notes) is row


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", None),
        ("One sentence that is long enough. And a second sentence.", "too few sentences"),
        (PAGE + "\nAnd here we see lorem ipsum in a sentence.", "lorem ipsum"),
        (PAGE + "\nThis line has a function() { in its middle.", "curly bracket"),
        (PAGE + "\nNo curly { in prose", None),
    ],
)
def test_c4_drops_pages(text: str, reason: str | None) -> None:
    assert fate(C4Quality(), text) == reason


def test_bad_words_are_words_and_travel_with_the_step(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text("Darn\n坏话\n\n", encoding="utf-8")
    step = C4Quality(bad_words=str(path), min_words_per_line=0)
    page = "This is one sentence. This is another sentence here. And {} is the third sentence."
    pages = [page.format(word) for word in ("this", "darning", "DARN", "很坏话的")]
    step = step.model_copy(update={"curly_brackets": False})
    identity = step.identity()
    path.unlink()

    for one in (step, pickle.loads(pickle.dumps(step))):
        assert [fate(one, text) for text in pages] == [None, None, "bad word", "bad word"]
    elsewhere = tmp_path / "same.txt"
    elsewhere.write_text("Darn\n坏话\n\n", encoding="utf-8")
    other = C4Quality(bad_words=str(elsewhere), min_words_per_line=0, curly_brackets=False)
    assert other.identity() == identity
