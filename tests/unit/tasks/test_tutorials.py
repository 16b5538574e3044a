"""The tutorials show the specs of `jobs/specs` as they are, and name only files and samples that exist."""

import re
from pathlib import Path

import pytest
import yaml

from maas_ray.sample_data import SAMPLES
from tests.support import ROOT

TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_specs_in_a_tutorial_are_those_of_the_files_it_names(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"`(jobs/specs/[\w-]+\.yaml)`(?:(?!```).)*```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)

    assert len(shown) == len(re.findall(r"^```yaml$", text, re.MULTILINE)) >= 2
    for name, spec in shown:
        assert yaml.safe_load(spec) == yaml.safe_load((ROOT / name).read_text(encoding="utf-8")), name


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_files_and_samples_in_a_tutorial_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    for pattern in re.findall(r"jobs/specs/[\w*-]+\.yaml", text):
        assert list(ROOT.glob(pattern)), pattern
    assert set(re.findall(r"maas_ray\.sample_data ([\w-]+)", text)) <= SAMPLES.keys()
