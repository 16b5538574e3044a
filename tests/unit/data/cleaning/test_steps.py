"""Cleaning steps in a spec, in a list, in other processes; and one's own."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maas_ray.data.cleaning import STEPS, AnyStep, Dropped, Notes, changed, clean_row, loaded, saved, value
from maas_ray.errors import DataError, InvalidError, SpecError
from maas_ray.spec import Spec, digest_of
from maas_ray.tasks.rows import REST
from maas_ray.user_code import trust
from tests.support.errors import raises

CODE = '''
from maas_ray.data.cleaning import CleaningStep, Dropped


class DropBoilerplate(CleaningStep):
    """Drops what begins so."""

    prefix: str
    """How it begins."""
    fitted: int | None = None

    @property
    def fits(self):
        return True

    def fit(self, rows):
        return self.model_copy(update={"fitted": sum(1 for _ in rows)})

    def clean(self, row, notes):
        if row["text"].startswith(self.prefix):
            raise Dropped("boilerplate")
        notes["seen"] += 1
        return {**row, "text": row["text"].strip()}


class Fails(CleaningStep):
    def clean(self, row, notes):
        return row["text"] / 2


class GivesNothing(CleaningStep):
    def clean(self, row, notes):
        return None


class Unfinished(CleaningStep):
    pass


number = 3
'''


class Cleaned(Spec):
    clean: tuple[AnyStep, ...] = ()


def steps_of(*documents: dict[str, Any]) -> tuple[Any, ...]:
    return Cleaned.parse({"clean": list(documents)}).clean


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `mine.py`; no code is vouched for yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trust, "_vouched", set())
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def test_every_step_has_a_distinct_name() -> None:
    names = [step.model_fields["step"].default for step in STEPS]

    assert len(names) == len(set(names))
    assert {"missing", "fix_text", "length", "language", "pii", "outliers", "image", "audio"} <= set(names)


def test_an_unknown_step_is_an_error_that_lists_steps() -> None:
    with raises(SpecError, "union_tag_invalid", "clean[0].step: 'lenght'", "Did you mean length"):
        steps_of({"step": "lenght"})
    with raises(SpecError, "union_tag_not_found", "clean[0].step: ", "fix_text"):
        steps_of({"min_words": 3})
    with raises(SpecError, "extra_forbidden", "clean[0].min_wrods: ", "did you mean `min_words`"):
        steps_of({"step": "length", "min_wrods": 3})


def test_steps_run_in_order_and_count_their_changes() -> None:
    steps = steps_of({"step": "fix_text"}, {"step": "pii"}, {"step": "length", "min_words": 2})
    notes = Notes()

    assert clean_row(steps, {"text": b"Gr\xfc\xdfe an a@b.de"}, notes) == {"text": "Grüße an <EMAIL_ADDRESS>"}
    assert notes == {"fix_text: decoded from windows-1252": 1, "fix_text: changed": 1, "pii: EMAIL_ADDRESS": 1}


def test_changes_to_a_dropped_row_are_not_counted() -> None:
    steps = steps_of({"step": "pii"}, {"step": "length", "min_words": 2})
    notes = Notes()

    with pytest.raises(Dropped, match=r"^length: too few words$"):
        clean_row(steps, {"text": "a@b.de"}, notes)
    assert not notes


def test_an_error_names_the_step() -> None:
    with raises(InvalidError, "column_missing", "step length: ", "'txt'", "text, label, size"):
        clean_row(
            steps_of({"step": "length", "min_words": 2, "columns": ["txt"]}),
            {"text": "a", "label": "b", REST: {"size": 3}},
            Notes(),
        )


def test_a_value_is_changed_in_every_place_that_holds_it() -> None:
    row = {"keep/a": 1, REST: {"a": 1, "b": 2}, "c": 3}

    assert changed(row, "a", 9) == {"keep/a": 9, REST: {"a": 9, "b": 2}, "c": 3}
    assert value(changed(row, "c", 9), "c") == 9
    assert row == {"keep/a": 1, REST: {"a": 1, "b": 2}, "c": 3}


# --- one's own -------------------------------------------------------------------------------------


def test_a_users_own_step_cleans_rows(here: Path) -> None:
    (step,) = steps_of({"step": "mine:DropBoilerplate", "prefix": "Cookie"})
    notes = Notes()

    assert clean_row([step], {"text": " yes "}, notes) == {"text": "yes"}
    assert notes == {"mine:DropBoilerplate: seen": 1}
    with pytest.raises(Dropped, match="mine:DropBoilerplate: boilerplate"):
        clean_row([step], {"text": "Cookies!"}, notes)


def test_fields_of_a_users_own_step_are_checked(here: Path) -> None:
    with raises(SpecError, "missing", "prefix: "):
        steps_of({"step": "mine:DropBoilerplate"})
    with raises(SpecError, "extra_forbidden", "prefx: ", "did you mean `prefix`"):
        steps_of({"step": "mine:DropBoilerplate", "prefix": "a", "prefx": "b"})


@pytest.mark.parametrize(
    ("path", "code", "value"),
    [
        ("mine:number", "not_a_step", "maas_ray.data.cleaning.CleaningStep"),
        ("mine:Nothing", "attribute_missing", "'Nothing'"),
        ("nowhere:Step", "module_missing", "'nowhere'"),
        ("mine:Unfinished", "abstract_step", "clean"),
    ],
)
def test_an_import_path_must_lead_to_a_finished_step(here: Path, path: str, code: str, value: str) -> None:
    with raises(SpecError, code, "step: ", value):
        steps_of({"step": path})


def test_any_error_of_a_users_own_step_is_an_error_of_the_row(here: Path) -> None:
    with raises(InvalidError, "step_failed", "step mine:Fails: TypeError: unsupported operand"):
        clean_row(steps_of({"step": "mine:Fails"}), {"text": "a"}, Notes())
    with raises(InvalidError, "step_failed", "step mine:GivesNothing: TypeError: ", "NoneType"):
        clean_row(steps_of({"step": "mine:GivesNothing"}), {"text": "a"}, Notes())


def test_a_users_own_step_runs_in_a_process_without_its_module(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (step,) = steps_of({"step": "mine:DropBoilerplate", "prefix": "Cookie"})
    fitted = step.fit([{"text": "a"}, {"text": "b"}])
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "steps.pickle").write_bytes(pickle.dumps(fitted))
    code = (
        "import pickle; from maas_ray.data.cleaning import clean_row, Notes\n"
        "step = pickle.load(open('steps.pickle', 'rb'))\n"
        "print(clean_row([step], {'text': ' a '}, Notes()), step.fitted, step.fits)"
    )

    out = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "{'text': 'a'} 2 True"


def test_the_code_of_a_users_own_step_is_part_of_the_fingerprint(here: Path) -> None:
    (before,) = steps_of({"step": "mine:DropBoilerplate", "prefix": "a"})
    (here / "mine.py").write_text(CODE + "\n# changed\n")
    (after,) = steps_of({"step": "mine:DropBoilerplate", "prefix": "a"})

    assert before.document() == after.document()
    assert digest_of(before.identity()) != digest_of(after.identity())


def test_steps_are_saved_with_their_statistics(here: Path) -> None:
    steps = steps_of(
        {"step": "missing", "columns": ["x"], "strategy": "mean"}, {"step": "mine:DropBoilerplate", "prefix": "a"}
    )
    fitted = [step.fit([{"x": 1.0, "text": ""}, {"x": 2, "text": ""}]) for step in steps]
    document = json.loads(json.dumps(saved(fitted)))

    assert loaded(document) == tuple(fitted)
    assert loaded(document)[0].fitted == {"x": 1.5}
    (here / "mine.py").write_text(CODE + "\n# changed\n")
    with raises(DataError, "code_changed", "mine:DropBoilerplate", "--fresh"):
        loaded(document)
