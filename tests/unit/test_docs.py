"""The site shows all that there is: every field of every spec, every command, every path of the HTTP API."""

import re
from typing import Any

import draw_path
import generate
import pytest

from tests.support import ROOT


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return generate.pages()


def rows(page: str, anchor: str) -> dict[str, list[str]]:
    """The table below a heading, by its first column."""
    (section,) = re.findall(rf"(?ms)^###? [^\n]*\{{ #{anchor} \}}$(.*?)(?=^##|\Z)", page)
    table = [re.split(r"(?<!\\) ?\| ?", line.strip("| ")) for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row for row in table}


def test_every_field_that_a_user_writes_is_documented(pages: dict[str, str]) -> None:
    from maas_ray import DeploySpec, EvaluateSpec, PredictSpec, PrepareSpec, TrainSpec
    from maas_ray.data.cleaning import STEPS
    from maas_ray.data.sources import FORMATS
    from maas_ray.tasks import TASKS

    homes: dict[str, list[Any]] = {
        "prepare": [PrepareSpec],
        "sources": [*FORMATS],
        "cleaning": [*STEPS],
        "tasks": [task.spec_type for task in TASKS],
        "networks": [network for task in TASKS for network in task.networks],
        "train": [TrainSpec],
        "evaluate": [EvaluateSpec],
        "predict": [PredictSpec],
        "deploy": [DeploySpec],
    }
    for name, models in homes.items():
        for model in models:
            documented = rows(pages[f"reference/{name}.md"], model.__name__.lower())
            assert set(documented) == set(model.model_fields), model.__name__
            for field, (_, kind, default, _, meaning) in documented.items():
                assert kind, f"{model.__name__}.{field}: no type"
                assert default, f"{model.__name__}.{field}: no default"
                assert meaning, f"{model.__name__}.{field}: no docstring"


def test_limits_and_defaults_are_those_of_the_spec(pages: dict[str, str]) -> None:
    train = rows(pages["reference/train.md"], "trainspec")

    assert train["epochs"][1:4] == ["integer", "`1`", "≥ 1"]
    assert train["learning_rate"][1:4] == ["number", "`0.001`", "> 0"]
    assert train["precision"][1:3] == ["`bf16` or `fp16` or `fp32`", "`bf16`"]
    assert train["workers"][1:4] == ["integer or [integer, integer]", "`1`", "≥ 1"]
    assert train["dataset"][2] == "required"
    assert train["max_steps"][1:3] == ["integer or null", "`null`"]
    assert rows(pages["reference/prepare.md"], "preparespec")["max_quarantined"][3] == "≥ 0, ≤ 1"


def test_every_command_and_option_is_documented(pages: dict[str, str]) -> None:
    import typer.main

    from maas_ray.cli import app

    def walk(command: Any, name: str) -> None:
        assert f"## `{name}`\n" in pages["reference/cli.md"]
        section = pages["reference/cli.md"].split(f"## `{name}`\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert parameter.opts[0] in section, f"{name} {parameter.opts[0]}"
        for child, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {child}")

    walk(typer.main.get_command(app), "maas")


def test_every_path_and_schema_of_the_http_api_is_documented(pages: dict[str, str]) -> None:
    from maas_ray.serve.api.openapi import document

    api = document([])
    for path, methods in api["paths"].items():
        for method in methods:
            assert f"## `{method.upper()} {path}`\n" in pages["reference/http.md"]
    for name, schema in api["components"]["schemas"].items():
        assert set(schema.get("properties", ())) == set(rows(pages["reference/http.md"], name.lower())), name


def test_anchors_of_a_page_are_distinct(pages: dict[str, str]) -> None:
    for uri, page in pages.items():
        anchors = re.findall(r"(?m)\{ #(\w+) \}$", page)
        assert len(anchors) == len(set(anchors)), uri


def test_links_out_of_docs_become_pages_or_text() -> None:
    text = "[a](docs/data.md#splits), [b](jobs/train.py), [c](https://example.org), [d](benchmarks/README.md)"

    assert generate.relinked(text, "README.md", "index.md") == (
        "[a](data.md#splits), b, [c](https://example.org), [d](benchmarks.md)"
    )
    assert generate.relinked("[a](../README.md)", "docs/data.md", "data.md") == "[a](index.md)"
    assert generate.relinked("[a](data.md)", "docs/tutorials/text.md", "tutorials/text.md") == "[a](data.md)"


def test_bars_in_code_of_tables_lose_their_escape() -> None:
    assert generate.without_escapes("| `A \\| B` | c \\| d |\n`e \\| f`") == "| `A | B` | c \\| d |\n`e \\| f`"


def test_a_link_to_a_file_that_does_not_exist_stops_the_build() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py"):
        generate.relinked("[a](../nowhere.py)", "docs/data.md", "data.md")


def test_modules_that_pages_name_exist() -> None:
    for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]:
        for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml|json|sh))`", page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists() or (ROOT / "maas_ray" / name).exists(), f"{page.name}: {name}"


def test_the_architecture_draws_the_floors_that_are_tested() -> None:
    from tests.unit.test_floors import FLOORS

    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (drawn,) = re.findall(r"(?s)### Floors\n.*?```\n(.*?)```", page)
    rooms = [room for line in reversed(drawn.splitlines()) for room in line.split()]
    floor = {room: height for height, floor in enumerate(FLOORS) for room in floor if room != "__init__"}

    assert sorted(rooms) == sorted(floor)
    assert rooms == sorted(rooms, key=lambda room: floor[room])


# --- README and findings ---------------------------------------------------------------------------


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700


def test_the_picture_is_what_the_script_draws() -> None:
    assert draw_path.FILE.read_text(encoding="utf-8") == draw_path.draw()


def test_every_finding_is_listed_and_pins_its_packages() -> None:
    listed = (ROOT / "findings/README.md").read_text(encoding="utf-8")
    scripts = [path for path in (ROOT / "findings").glob("*.sh") if path.name not in ("run_all.sh", "environment.sh")]

    assert scripts
    for script in scripts:
        head = script.read_text(encoding="utf-8").split("set -euo pipefail")[0]
        assert f"[{script.stem}]({script.name})" in listed, script.name
        parts = re.findall(r"(?m)^# (Expected|Effect|Needs|Seen): \S", head)
        assert parts == ["Expected", "Effect", "Needs", "Seen"], script.name
        assert re.search(r"(?m)^# Needs:(?: [\w.\[\],-]+==[\w.]+)+$", head), script.name
        assert "maas_ray" not in script.read_text(encoding="utf-8").split("set -euo pipefail")[1], script.name
