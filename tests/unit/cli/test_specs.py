"""Templates, wrong names in specs, and dry runs."""

import json
from pathlib import Path

import pytest

from maas_ray.serve.deployment import serve_control
from maas_ray.settings import Settings
from tests.support.bundles import image_task, register
from tests.support.datasets import digits_dataset
from tests.support.terminal import Run


@pytest.mark.parametrize(
    ("verb", "text", "status", "place", "values"),
    [
        ("train", "model: m\nnetwork: {type: cnn}\ndataset: d\n", 1, ", line 3: dataset: ", ["'d'"]),
        ("evaluate", "version: lm@best\n", 1, ", line 1: version: ", ["lm", "'best'", "champion"]),
        ("evaluate", "version: lm@\n", 2, ": 1 problem\n  line 1: version: ", ["'lm@'"]),
        ("evaluate", "version: lm/1\ndataset: d\n", 1, ", line 2: dataset: ", ["'d'"]),
        ("deploy", "version: lm/7\n", 1, ", line 1: version: ", ["lm", "7", "2, 1"]),
    ],
)
def test_an_error_about_a_name_in_a_spec_has_file_and_line(
    run: Run, tmp_path: Path, verb: str, text: str, status: int, place: str, values: list[str]
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)

    ended, _, err = run(verb, str(path))

    assert ended == status
    assert err.startswith(f"{path}{place}")
    assert all(value in err for value in values)


def test_spec_prints_a_template_or_a_schema(run: Run) -> None:
    status, template, err = run("spec", "train", "--with", "network=resnet")
    schema = json.loads(run("spec", "train", "--schema")[1])

    assert (status, err) == (0, "")
    assert "\n  type: resnet\n" in template
    assert "\n#batch_size: 32\n" in template
    assert schema["properties"]["batch_size"]["description"]
    assert run("spec", "train", "--with", "network=none")[0] == 2
    assert run("spec", "tarin")[0] == 2


def test_a_dry_run_of_prepare_checks_the_input_and_writes_nothing(run: Run, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n")
    spec = tmp_path / "prepare.yaml"
    spec.write_text(
        f"dataset: d\ntask: {{type: text-generation}}\nsources: [{{format: text, path: {tmp_path}/a.txt}}]\n"
    )

    status, out, err = run("prepare", str(spec), "--dry-run")

    assert (status, err) == (0, "")
    assert "dataset d: " in out
    assert "1 file" in out
    assert not (Path(settings.storage) / "datasets").exists()
    assert run("prepare", str(spec), "--dry-run", "--set", f"sources.0.path={tmp_path}/none")[0] == 1


def test_a_dry_run_of_train_says_what_would_be_trained(run: Run, settings: Settings, tmp_path: Path) -> None:
    dataset = digits_dataset(settings, "digits")
    spec = tmp_path / "train.yaml"
    spec.write_text(f"dataset: {dataset.uri}\nmodel: m\nnetwork: {{type: cnn}}\n")

    status, out, err = run("train", str(spec), "--dry-run")

    assert (status, err) == (0, "")
    for value in ("digits", "1,437 rows", "cnn", "45"):
        assert value in out
    assert run("train", str(spec), "--dry-run", "--set", "network.type=llama")[0] == 2
    assert run("models", "m")[0] == 1


def test_a_dry_run_of_deploy_says_what_would_change(
    run: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_control, "connected", lambda _: False)
    register(settings, "img", image_task(), tmp_path / "bundle", seed=1, alias="champion")

    status, out, err = run("deploy", "img@champion", "--endpoint", "beta", "--dry-run")

    assert (status, err) == (0, "")
    assert out.startswith("endpoint beta: img/1, image-classification\n")
    assert json.loads(run("endpoints", "--json")[1]) == []
    assert run("deploy", "img/7", "--dry-run")[0] == 1
