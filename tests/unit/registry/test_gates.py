"""Gates: their grammar, their verdicts, and that they fail closed."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from maas_ray.errors import GateError, InvalidError, SpecError
from maas_ray.registry.bundle import BundleMeta, Lineage, publish_bundle
from maas_ray.registry.gates import judge, parse_gate, pass_gates
from maas_ray.registry.versions import Evaluation, ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.training.spec import TrainSpec
from tests.support import bundles
from tests.support.errors import raises

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "metric", "reference", "bound"),
    [
        ("f1 >= 0.9", "f1", "", 0.9),
        ("f1>=.9", "f1", "", 0.9),
        ("loss < 1e-3", "loss", "", 1e-3),
        ("loss <= -2", "loss", "", -2.0),
        ("f1 >= champion", "f1", "champion", 0.5),
        ("f1 >= champion - 0.005", "f1", "champion", 0.495),
        ("test/f1 > champion + 0.01", "test/f1", "champion", 0.51),
        ("f1 >= champion * 0.98", "f1", "champion", 0.49),
        ("f1 >= 0.98 * digits/3", "f1", "digits/3", 0.49),
        ("f1 >= my-champion_2 - 1", "f1", "my-champion_2", -0.5),
    ],
)
def test_a_gate_is_parsed_into_metric_reference_and_bound(text: str, metric: str, reference: str, bound: float) -> None:
    gate = parse_gate(text)

    assert (gate.metric, gate.reference) == (metric, reference)
    assert gate.bound(0.5 if reference else 0.0) == pytest.approx(bound)


def test_a_gate_names_an_alias_that_the_registry_accepts() -> None:
    with raises(InvalidError, "alias_invalid", "'champion-0.005'", "spaces around + - *"):
        parse_gate("f1 >= champion-0.005")
    with raises(InvalidError, "alias_reserved", "'V2'"):
        parse_gate("f1 >= V2")
    with raises(InvalidError, "reference_invalid", "'digits/x'"):
        parse_gate("f1 >= digits/x")


@pytest.mark.parametrize(
    "text",
    [
        *("", "f1", "f1 = 0.9", "f1 >= ", ">= 0.9", "f1 >= 0.9 - 0.1", "f1 >= champion -", "f1 >= a - b"),
        *("f1 >= a / 2", "f1 >= 0.9 < 1", "a b >= 1"),
    ],
)
def test_text_that_is_not_a_gate_is_refused(text: str) -> None:
    with raises(InvalidError, "gate_invalid", repr(text), "METRIC >= NUMBER"):
        parse_gate(text)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("f1 >= 0.9", 0.9, True),
        ("f1 > 0.9", 0.9, False),
        ("f1 <= 0.9", 0.9, True),
        ("f1 < 0.9", 0.9, False),
        ("f1 >= 0.9", float("nan"), False),
        ("f1 <= 0.9", float("nan"), False),
    ],
)
def test_a_gate_holds_by_its_comparison_and_never_for_nan(text: str, value: float, holds: bool) -> None:
    gate = parse_gate(text)

    assert gate.holds(value, gate.bound(0.0)) is holds


# --- against a registry ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A platform's home with two versions of `digits`, the first of them `champion`."""
    home = tmp_path_factory.mktemp("registry")
    settings = Settings(home=str(home))
    registry = Registry(settings)
    task = bundles.image_task()
    for number, alias in ((1, "champion"), (2, None)):
        directory = bundles.save_bundle(task, tmp_path_factory.mktemp("bundle"), seed=number)
        lineage = Lineage(dataset="scans", dataset_fingerprint="f", measured_rows={"validation": 60})
        meta = BundleMeta(name="digits", task=task.spec.type, metrics={"validation/loss": 1.0}, lineage=lineage)
        version = registry.register(publish_bundle(settings, directory, meta))
        if alias:
            registry.set_alias(version, alias)
    return home


@pytest.fixture
def registry(settings: Settings, registry_home: Path) -> Registry:
    """A copy of it."""
    shutil.copytree(registry_home, settings.home)
    return Registry(settings)


def evaluated(registry: Registry, number: int, **given: object) -> ModelVersion:
    """A version as it is after an evaluation."""
    fields = {"dataset": "scans", "fingerprint": "f", "split": "test", "rows": 180, "uri": "x", "created": NOW}
    registry.record(registry.resolve(f"digits/{number}"), Evaluation.parse({**fields, **given}))
    return registry.resolve(f"digits/{number}")


def test_a_version_is_compared_with_what_another_has_on_the_same_rows(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(registry, 1, metrics={"f1": 0.9})
    second = evaluated(registry, 2, metrics={"f1": 0.896})

    near, better = judge(registry, second, "champion", ["f1 >= champion - 0.005", "f1 > champion"])

    assert near.passed
    assert str(near) == (
        "gate f1 >= champion - 0.005: passed, digits/2 has 0.896, digits/1 has 0.9, which makes 0.895 "
        "(scans/test, 180 rows)"
    )
    assert not better.passed
    with raises(GateError, "gate_not_passed", "digits@champion", "digits/2", "gate f1 > champion: NOT passed"):
        pass_gates(registry, second, "champion", ["f1 >= champion - 0.005", "f1 > champion"])
    assert capsys.readouterr().out == f"{near}\n"
    with raises(SpecError, "gate_invalid", "f1 ? 1"):
        judge(registry, second, "champion", ["f1 > 0", "f1 ? 1"])


def test_the_newest_evaluation_counts_and_each_split_has_its_own(registry: Registry) -> None:
    evaluated(registry, 2, metrics={"f1": 0.1})
    evaluated(registry, 2, metrics={"f1": 0.8}, created=NOW + timedelta(1))
    second = evaluated(registry, 2, metrics={"f1": 0.3}, split="validation", created=NOW + timedelta(2))

    verdicts = judge(registry, second, "champion", ["f1 > 0.5", "test/f1 > 0.5", "validation/f1 > 0.5"])

    assert [one.split for one in second.evaluations] == ["validation", "test"]
    assert [verdict.passed for verdict in verdicts] == [False, True, False]


@pytest.mark.parametrize(
    "theirs",
    [
        {},
        {"metrics": {"f1": 0.1}, "fingerprint": "another"},
        {"metrics": {"f1": 0.1}, "split": "validation"},
        {"metrics": {"accuracy": 0.1}},
    ],
)
def test_metrics_of_other_rows_are_not_compared(registry: Registry, theirs: dict[str, object]) -> None:
    if theirs:
        evaluated(registry, 1, **theirs)
    second = evaluated(registry, 2, metrics={"f1": 0.9})

    (verdict,) = judge(registry, second, "champion", ["f1 >= champion"])
    assert verdict.code == "metric_on_other_rows"
    with raises(GateError, "gate_not_passed", "digits/1", "f1", "scans/test, 180 rows", "maas evaluate"):
        pass_gates(registry, second, "champion", ["f1 >= champion"])


def test_a_metric_that_is_not_there_fails_and_those_that_are_are_named(registry: Registry) -> None:
    second = registry.resolve("digits/2")

    (verdict,) = judge(registry, second, "champion", ["f1 > 0"])
    assert not verdict.passed
    assert verdict.code == "metric_missing"
    assert "digits/2 has no f1, since it was never evaluated; it has: validation/loss." in verdict.why

    second = evaluated(registry, 2, metrics={"f1": 0.9})
    (verdict,) = judge(registry, second, "champion", ["accuracy > 0"])
    assert (
        "no evaluation of digits/2 on validation or test has accuracy; it has: test/f1, validation/loss." in verdict.why
    )
    (verdict,) = judge(registry, second, "champion", ["f1 >= winner"])
    assert not verdict.passed
    assert verdict.code == "alias_not_found"
    assert "'winner'; it has: champion." in verdict.why
    (verdict,) = judge(registry, second, "champion", ["f1 >= champion-5"])  # could be an alias
    assert "spaces around + - *" in verdict.why


def test_the_first_of_all_champions_has_nobody_to_be_compared_with(registry: Registry) -> None:
    second = evaluated(registry, 2, metrics={"f1": 0.9})

    first, other = judge(registry, second, "best", ["f1 >= best", "accuracy >= best"])

    assert first.passed
    assert "no version is best yet" in first.why
    assert not other.passed


def test_training_metrics_are_compared_on_one_dataset(registry: Registry) -> None:
    first, second = registry.resolve("digits/1"), registry.resolve("digits/2")

    (verdict,) = judge(registry, second, "champion", ["validation/loss <= champion"])

    assert first.metrics == second.metrics == {"validation/loss": 1.0}
    assert verdict.passed


@pytest.mark.parametrize("fingerprints", [{1: "one", 2: "other"}, {1: "", 2: ""}])
def test_training_metrics_of_other_or_unknown_datasets_are_not_compared(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, fingerprints: dict[int, str]
) -> None:
    versions = {
        number: ModelVersion(
            "digits", number, "", str(number), "", ("champion",) if number == 1 else (), {"validation/loss": 1.0},
            Lineage(dataset="scans", dataset_fingerprint=fingerprints[number], measured_rows={"validation": 60}), NOW,
        )
        for number in (1, 2)
    }  # fmt: skip
    monkeypatch.setattr(Registry, "versions", lambda self, name: list(versions.values()))

    (verdict,) = judge(registry, versions[2], "champion", ["validation/loss <= champion"])

    assert not verdict.passed
    assert "on the same rows (scans/validation, 60 rows, measured by the training)" in verdict.why


@pytest.mark.parametrize("measured", [{1: 60, 2: 40}, {1: 40, 2: 60}, {1: None, 2: 60}, {1: None, 2: None}])
def test_training_metrics_of_other_or_unknown_row_counts_are_not_compared(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, measured: dict[int, int | None]
) -> None:
    versions = {
        number: ModelVersion(
            "digits", number, "", str(number), "", ("champion",) if number == 1 else (), {"validation/loss": 1.0},
            Lineage(dataset="scans", dataset_fingerprint="f", measured_rows={"validation": rows} if rows else {}), NOW,
        )
        for number, rows in measured.items()
    }  # fmt: skip
    monkeypatch.setattr(Registry, "versions", lambda self, name: list(versions.values()))

    alone, compared = judge(registry, versions[2], "champion", ["validation/loss <= 1", "validation/loss <= champion"])

    assert alone.passed
    assert not compared.passed


def test_a_training_metric_is_compared_only_with_an_evaluation_of_as_many_rows(registry: Registry) -> None:
    gate = ["validation/loss <= champion"]
    second = evaluated(registry, 2, split="validation", rows=90, metrics={"loss": 0.9})
    (more,) = judge(registry, second, "champion", gate)
    assert not more.passed
    assert more.why == (
        "digits/1 has no validation/loss on the same rows (scans/validation, 90 rows) (but on scans/validation, 60 "
        "rows, measured by the training); evaluate both versions on one dataset: maas evaluate digits/2 scans --split "
        "validation, and maas evaluate digits/1 scans --split validation."
    )

    second = evaluated(registry, 2, split="validation", rows=60, metrics={"loss": 0.9})
    assert judge(registry, second, "champion", gate)[0].passed


@pytest.mark.parametrize(
    ("ended", "fields", "rows"),
    [
        ("every step is done", {"max_rows": 100}, {"validation": 300, "test": 200}),
        ("every step is done", {"max_rows": 100, "max_rows_at_end": 250}, {"validation": 250, "test": 200}),
        ("", {"max_rows": 100}, {"validation": 100}),
        ("", {"max_rows": 400}, {"validation": 300}),
        ("", {}, {"validation": 300}),
    ],
)
def test_a_version_says_how_many_rows_its_training_measured(
    ended: str, fields: dict[str, int], rows: dict[str, int]
) -> None:
    from types import SimpleNamespace

    from maas_ray.training.checkpoints.position import Position
    from maas_ray.training.finish import _measured_rows
    from maas_ray.training.validation.spec import ValidationSpec

    sizes = {"validation": SimpleNamespace(rows=300), "test": SimpleNamespace(rows=200)}
    spec = SimpleNamespace(validation=ValidationSpec.parse(fields))
    run: Any = SimpleNamespace(spec=spec, dataset=SimpleNamespace(split=sizes.__getitem__))
    position = Position(step=1, workers=1, ended=ended, metrics={f"{split}/loss": 1.0 for split in rows})

    assert _measured_rows(run, position) == rows


def test_metrics_of_the_training_split_count_only_if_the_gate_names_it(registry: Registry) -> None:
    second = evaluated(registry, 2, split="train", metrics={"f1": 0.99})
    plain, named = judge(registry, second, "champion", ["f1 >= 0.9", "train/f1 >= 0.9"])
    assert not plain.passed
    assert "no evaluation of digits/2 on validation or test has f1; it has: train/f1, validation/loss." in plain.why
    assert named.passed

    second = evaluated(registry, 2, metrics={"f1": 0.5}, created=NOW - timedelta(1))
    (plain,) = judge(registry, second, "champion", ["f1 >= 0.9"])
    assert not plain.passed
    assert "digits/2 has 0.5" in plain.why


# --- beside an alias in a training's spec ----------------------------------------------------------


def test_a_training_has_gates_of_what_it_measures() -> None:
    given = {"dataset": "d", "model": "m", "network": {"type": "cnn"}, "alias": "champion"}

    one = TrainSpec.parse({**given, "gate": "validation/loss <= champion"})
    assert one.gate == ("validation/loss <= champion",)
    assert len(TrainSpec.parse({**given, "gate": ["validation/loss <= champion", "validation/f1 > 0.5"]}).gate) == 2
    with raises(SpecError, "gate_needs_split", "'f1'", "validation/f1"):
        TrainSpec.parse({**given, "gate": "f1 > 0.5"})
    with raises(SpecError, "gate_invalid", "'f1'", "METRIC >= NUMBER"):
        TrainSpec.parse({**given, "gate": "f1"})
    with raises(SpecError, "gate_without_alias", "gate", "alias"):
        TrainSpec.parse({**given, "alias": None, "gate": "validation/f1 > 0.5"})


def test_a_training_moves_its_alias_only_where_the_gate_lets_it(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import SimpleNamespace

    from maas_ray.training.run import _move_alias

    def end(gate: str) -> tuple[str, ...]:
        spec: Any = SimpleNamespace(model="digits", alias="champion", gate=(gate,))
        return _move_alias(registry, spec, registry.resolve("digits/2")).aliases

    assert end("validation/loss < champion") == ()
    assert capsys.readouterr().out == (
        "gate validation/loss < champion: NOT passed, digits/2 has 1, digits/1 has 1 (scans/validation, 60 rows, "
        "measured by the training)\ndigits@champion stays where it is; digits/2 is registered without it\n"
    )
    assert end("validation/loss <= champion") == ("champion",)
    assert not registry.resolve("digits/2").due
    assert capsys.readouterr().out.endswith("\ndigits@champion is now digits/2\n")
