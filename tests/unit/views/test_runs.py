"""Training runs as `maas runs` shows them, from a real MLflow store."""

import io
import json
import math
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from maas_ray import cli
from maas_ray.errors import NotFoundError, SpecError, StorageError
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.terminal.curves import Chart, Series, draw
from maas_ray.training import events
from maas_ray.views import runs
from tests.support.errors import raises

LANGUAGE = {"network.type": "llama", "network.layers": "4", "network.kv_heads": "None", "batch_size": "16", "seed": "0"}
START = int(time.time() * 1000) - 3_600_000


class Store:
    """Makes runs as training does."""

    def __init__(self, settings: Settings) -> None:
        self.client = Registry(settings).client

    def run(
        self,
        model: str,
        name: str,
        status: str = "FINISHED",
        *,
        steps: int = 0,
        minute: int = 0,
        parameters: dict[str, str] = LANGUAGE,
        **tags: str,
    ) -> str:
        experiment = self.client.get_experiment_by_name(model)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(model)
        own = {"maas.run": name, "maas.identity": "i", "maas.dataset": "d" * 64, "mlflow.source.git.commit": "c0ffee"}
        own |= {"maas.task": "image-classification" if model == "digits" else "text-generation"}
        own |= {f"maas.{key}": value for key, value in tags.items()}
        start = START + minute * 60_000
        run_id: str = self.client.create_run(experiment_id, run_name=name, start_time=start, tags=own).info.run_id
        for key, value in parameters.items():
            self.client.log_param(run_id, key, value)
        for step in range(10, steps + 1, 10):
            self.log(run_id, step, start + step * 100, loss=10.0 - step / 10)
        if status != "RUNNING":
            self.client.set_terminated(run_id, status, end_time=start + steps * 100 + 5_000)
        return run_id

    def log(self, run_id: str, step: int, at: int, *, loss: float) -> None:
        from mlflow.entities import Metric

        values = {"loss": loss, "learning_rate": 1e-3 / step, "units_per_second": 2048.0, "step_seconds": 0.1}
        values["data_wait_share"] = 0.25
        metrics = [Metric(f"train/{key}", value, at, step) for key, value in values.items()]
        if step % 20 == 0:
            metrics += [Metric(events.CHECKPOINT_SECONDS, 0.5, at, step), Metric("validation/loss", loss, at, step)]
            metrics += [Metric("validation/perplexity", math.exp(loss), at, step)]
            metrics += [Metric(events.VALIDATION_SECONDS, 0.5, at, step)]
        self.client.log_batch(run_id, metrics=metrics)


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store(settings)


@pytest.fixture
def maas(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Run `maas` in this process: exit status, standard output, standard error."""

    def call(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["maas", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return call


Maas = Callable[..., tuple[Any, str, str]]


# --- the list --------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_with_what_counts(store: Store, maas: Maas) -> None:
    store.run("lm", "lm-done", steps=40, total_steps="40")
    store.run("digits", "digits-x", "FAILED", minute=1, parameters={"network.type": "cnn"}, total_steps="90")
    store.run("lm", "lm-now", "RUNNING", steps=20, minute=2, total_steps="40")
    store.client.create_run(store.client.create_experiment("foreign"))  # nobody's run of ours

    status, out, _ = maas("runs")
    head, now, digits, done = (line.split() for line in out.splitlines())

    assert status == 0
    assert head == ["RUN", "MODEL", "STATE", "STEP", "LOSS", "VALIDATION", "SPEED", "STARTED", "TOOK", "VERSION"]
    assert now[:8] == ["lm-now", "lm", "running", "20/40", "8", "perplexity", "2981", "2,048"]
    assert digits[:7] == ["digits-x", "digits", "failed", "0/90", "–", "–", "–"]
    assert done[:9] == ["lm-done", "lm", "finished", "40/40", "6", "perplexity", "403.4", "2,048", "tokens/s"]
    assert done[-3:] == ["9", "s", "–"]
    assert [line.split()[0] for line in maas("runs", "--limit", "1")[1].splitlines()] == ["RUN", "lm-now"]


def test_the_list_as_json(store: Store, maas: Maas) -> None:
    run_id = store.run("lm", "lm-a", "KILLED", steps=40)  # from before total steps were recorded
    [only] = json.loads(maas("runs", "--json")[1])

    assert datetime.fromisoformat(only.pop("started")).timestamp() == START / 1000
    assert only.pop("validation") == {"perplexity": pytest.approx(math.exp(6.0))}
    assert only == {
        **{"name": "lm-a", "run_id": run_id, "model": "lm", "state": "killed", "step": 40, "total_steps": None},
        **{"loss": 6.0, "units_per_second": 2048.0, "unit": "tokens", "seconds": 9.0, "version": None},
    }


def test_a_run_names_the_version_that_it_ended_in(store: Store, settings: Settings, tmp_path: Path, maas: Maas) -> None:
    from maas_ray.registry.bundle import BundleMeta, Lineage, publish_bundle

    run_id = store.run("lm", "lm-a", steps=20, total_steps="20")
    (tmp_path / "bundle").mkdir()
    lineage = Lineage(dataset="words", dataset_fingerprint="d" * 64, run="lm-a", run_id=run_id, code_revision="c0ffee")
    meta = BundleMeta(name="lm", task="text-generation", metrics={}, lineage=lineage)
    Registry(settings).register(publish_bundle(settings, tmp_path / "bundle", meta), run_id=run_id)

    assert maas("runs")[1].splitlines()[1].split()[-1] == "lm/1"
    assert json.loads(maas("runs", "lm-a", "--json")[1])["version"] == "lm/1"


@pytest.mark.parametrize("width", [80, 200])
def test_the_list_fits_a_terminal(
    width: int, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.run("stdlib-lm", "stdlib-lm-1f3a9c02", steps=40, total_steps="40")
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True, soft_wrap=True)
    monkeypatch.setattr("maas_ray.terminal.lines.console", lambda: screen)
    monkeypatch.setattr(runs, "console", lambda: screen)

    runs.show_runs(settings, 20)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]

    assert len(shown.splitlines()) == (4 if width == 80 else 2)
    for whole in ("stdlib-lm-1f3a9c02", "40/40", "finished", "perplexity 403.4", "2,048 tokens/s"):
        assert whole in shown


# --- one run ---------------------------------------------------------------------------------------


def test_one_run_shows_what_it_was_given_how_it_went_and_its_curves(store: Store, maas: Maas) -> None:
    run_id = store.run("lm", "lm-a", steps=40, total_steps="40", elastic="1 to 2 workers")
    for workers, step in ((2, 1), (2, 10), (1, 20)):
        store.client.log_metric(run_id, "maas.world_size", workers, timestamp=START + step * 100, step=step)

    status, out, _ = maas("runs", "lm-a")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines()[1:] if line.startswith("  ") and line[2] != " ")
    facts = {key: value.strip() for key, value in facts.items()}

    assert status == 0
    assert out.startswith("lm-a\n")
    assert facts["state"] == "finished, step 40/40"
    assert (facts["dataset"], facts["mlflow"], facts["code"]) == ("d" * 64, run_id, "c0ffee")
    assert facts["network"] == "type llama, layers 4"
    assert facts["training"] == "batch_size 16, seed 0"
    assert facts["elastic"] == "1 to 2 workers"
    assert facts["world_size"] == "2 from step 1, 1 from step 20"
    assert "loss 6" in facts["train"]
    assert facts["validation"] == "loss 6, perplexity 403.429"
    assert facts["time"] == "4 s 44.4%  steps"
    assert "1 s 11.1%  of these waiting for data" in out
    assert "1 s 11.1%  2 checkpoints" in out
    assert "1 s 11.1%  validation" in out
    for title in (
        "loss       ── train 6   ● validation 6",
        "learning rate  ── last 2.5e-05",
        "tokens/s   ── last 2,048",
    ):
        assert title in out
    assert max(len(line) for line in out.split("\n\n", 1)[1].splitlines()) <= 80


def test_a_run_is_found_by_the_beginning_of_its_id(store: Store, maas: Maas) -> None:
    run_id = store.run("lm", "lm-a")
    store.run("lm", "lm-b")

    for reference in (run_id, run_id[:12]):
        assert json.loads(maas("runs", reference, "--json")[1])["name"] == "lm-a"


def test_a_name_that_matches_several_runs_is_refused(store: Store, settings: Settings) -> None:
    ids = [store.run(model, "same") for model in ("lm", "other")]

    with raises(SpecError, "ambiguous_run", "same of lm", "same of other", *(run_id[:12] for run_id in ids)):
        runs.show_run(settings, "same")


@pytest.mark.parametrize("reference", ["nope", "x' OR 1=1 --", "", "%", "ffffffffffffffffffffffffffffffff"])
def test_an_unknown_run_is_reported_with_the_newest(reference: str, store: Store, settings: Settings) -> None:
    for number in range(7):
        store.run("lm", f"lm-{number}", minute=number)

    with raises(NotFoundError, "unknown_run", repr(reference), "lm-6, lm-5, lm-4, lm-3, lm-2."):
        runs.show_run(settings, reference)


def test_the_history_as_json_has_null_for_nan_and_infinity(store: Store, maas: Maas) -> None:
    run_id = store.run("lm", "lm-a", "FAILED", steps=20)
    for step, value in ((30, math.nan), (40, math.inf)):
        store.client.log_metric(run_id, "validation/loss", value, step=step)

    status, out, _ = maas("runs", "lm-a", "--json")
    document = json.loads(out, parse_constant=pytest.fail)

    assert status == 0
    assert [(point["step"], point["value"]) for point in document["history"]["train/loss"]] == [(10, 9.0), (20, 8.0)]
    assert document["history"]["validation/loss"][1]["value"] is None
    assert document["parameters"]["network.layers"] == "4"
    assert "● validation 8" in maas("runs", "lm-a")[1]  # drawn without them


def test_a_resumed_run_counts_no_step_twice(store: Store, maas: Maas) -> None:
    run_id = store.run("lm", "lm-a", "RUNNING", steps=30, total_steps="50")
    for step in (30, 40):  # died after step 30, resumed from the checkpoint of step 20
        store.log(run_id, step, START + 60_000 + step * 100, loss=1.0)

    out = maas("runs", "lm-a")[1]

    assert "running, step 40/50, last report " in out
    assert re.search(r"(?m)^  time +5 s +[\d.]+%  steps", out)


# --- curves ----------------------------------------------------------------------------------------


def test_the_curves_are_written_as_a_png(store: Store, maas: Maas, tmp_path: Path) -> None:
    store.run("lm", "lm-a", steps=200)
    store.run("lm", "lm-empty")
    path = tmp_path / "curves.png"

    status, out, err = maas("runs", "lm-a", "--png", str(path))

    assert (status, err) == (0, "")
    assert out.endswith(f"{path} written\n")
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 500
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    assert path.stat().st_size > 10_000
    assert maas("runs", "lm-empty", "--png", str(path))[1].endswith("not written: the run has not reported yet\n")


def test_a_png_that_cannot_be_written_is_an_error(store: Store, settings: Settings, tmp_path: Path, maas: Maas) -> None:
    store.run("lm", "lm-a", steps=20)

    with raises(StorageError, "not_writable", tmp_path / "none" / "curves.png", "No such file or directory"):
        runs.show_run(settings, "lm-a", png=tmp_path / "none" / "curves.png")
    assert maas("runs", "--png", "x.png")[0] == 2


def test_a_curve_runs_from_corner_to_corner() -> None:
    lines = draw(Chart("x", (Series("y", [(0, 0.0), (100, 1.0)]),), rows=4), 40).plain.splitlines()

    assert lines[1].startswith("        1 ┤")
    assert lines[1].endswith("⠒⠉")
    assert lines[4].startswith("        0 ┤⣀⠤")
    assert {len(line) for line in lines[1:6]} == {40}
    assert lines[6].endswith("step 100")


@pytest.mark.parametrize("points", [[(5, 2.0)], [(1, 0.0), (2, 0.0)], [(0, -1.0)], [(1, math.nan), (2, 3.0)]])
def test_few_points_are_drawn_too(points: list[tuple[int, float]]) -> None:
    for from_zero in (False, True):
        chart = Chart("x", (Series("y", points),), from_zero=from_zero)
        assert any(0x2800 < ord(character) <= 0x28FF for character in draw(chart, 20).plain)
