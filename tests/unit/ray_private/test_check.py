"""The self-test finds each private name of the installed Ray, and names one that is gone."""

import ast
import re

import pytest

from maas_ray.cluster import local
from maas_ray.errors import ClusterError
from maas_ray.ray_private import check
from maas_ray.ray_private.check import USES, Use, problems
from tests.support import ROOT
from tests.support.errors import raises

PRIVATE = re.compile(r"^ray\.(.*\.)?_")


def test_the_installed_ray_has_all_private_names() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    "name",
    [
        "nowhere.at_all.Name",
        "serve.handle.Missing",
        "serve.handle.DeploymentHandle.missing",
        "serve.api.delete(missing)",
        "serve.api.missing(name)",
    ],
)
def test_a_name_that_is_gone_is_named_with_what_breaks(name: str) -> None:
    depth = {"nowhere": 2}.get(name.split(".", maxsplit=1)[0], 2)
    module, rest = ".".join(name.split(".")[:depth]), ".".join(name.split(".")[depth:])
    (line,) = problems((Use(module, rest, "saying hello"),))
    assert f"ray.{name}" in line
    assert "saying hello" in line


def test_a_cluster_is_not_started_with_a_ray_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "problems", lambda: ["ray.serve.gone does not exist."])
    with raises(ClusterError, "ray_incompatible", "ray.serve.gone", "2.6", "pip install"):
        local._check_ray()


def test_private_names_of_ray_are_imported_in_one_room_and_checked() -> None:
    checked = {f"ray.{use.module}" for use in USES} | {"ray._raylet"}
    for path in sorted((ROOT / "maas_ray").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom | ast.Import):
                continue
            base = getattr(node, "module", None)
            names = [f"{base}.{alias.name}" if base else alias.name for alias in node.names]
            for name in filter(PRIVATE.search, names):
                assert path.parent.name == "ray_private", f"{path}:{node.lineno}: {name}"
                assert any(name.startswith(module) for module in checked), (
                    f"{path}:{node.lineno}: {name} is not checked"
                )
