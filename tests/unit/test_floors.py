"""The house stands as docs/architecture.md draws it: each module imports only from floors below its own."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "maas_ray"
FLOORS = [
    {"errors", "version"},
    {"spec", "bodies"},
    {"settings", "terminal"},
    {"storage"},
    {"tasks"},
    {"cluster", "own", "sample_data"},
    {"data", "registry"},
    {"training", "evaluation"},
    {"serve"},
    {"batch"},
    {"views"},
    {"__init__"},  # the verbs, which import what they call when they are called
    {"cli"},
    {"jobs"},
]
FLOOR = {unit: height for height, units in enumerate(FLOORS) for unit in units}
# unit: what it must never import, wherever the import stands
NEVER = {
    "serve": {"maas_ray.training", "maas_ray.data", "maas_ray.evaluation", "deepspeed"},
    "training": {"maas_ray.serve"},
    "evaluation": {"maas_ray.serve", "maas_ray.training"},
    "batch": {"maas_ray.training", "maas_ray.evaluation", "deepspeed"},
    "tasks": {"ray", "deepspeed", "mlflow"},
    "registry": {"ray", "torch", "deepspeed"},
    "data": {"torch", "deepspeed", "mlflow"},
}
HEAVY = {"torch", "ray", "transformers", "deepspeed", "mlflow", "accelerate", "openai", "pandas", "matplotlib"}


def unit_of(path: Path) -> str:
    if path.is_relative_to(PACKAGE):
        return path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "jobs"


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports, at its top or inside a function, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            for name in node.names:
                yield f"{node.module}.{name.name}", node.lineno


def target_of(module: str) -> str | None:
    """The unit of this package that an imported name belongs to."""
    first, *rest = module.split(".")
    if first != "maas_ray" or not rest or rest[0].startswith("__"):
        return None  # the bare package: its version, its place
    return rest[0] if rest[0] in FLOOR and module_exists(rest[0]) else "__init__"


def module_exists(unit: str) -> bool:
    return (PACKAGE / unit).is_dir() or (PACKAGE / f"{unit}.py").is_file()


def files() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


def test_every_module_has_a_floor() -> None:
    assert {unit_of(path) for path in files()} <= set(FLOOR)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_lead_downwards(path: Path) -> None:
    unit = unit_of(path)
    for module, line in imports(path):
        target = target_of(module)
        if target is None or target == unit:
            continue
        # Verbs of the same name as a package are the package's: `from maas_ray import train`.
        verb_or_package = module.count(".") == 1 and unit in ("cli", "jobs")
        assert verb_or_package or FLOOR[target] < FLOOR[unit], f"{path}:{line}: {unit} imports {module}"


@pytest.mark.parametrize("unit", NEVER)
def test_what_must_never_be_imported_is_not(unit: str) -> None:
    for path in files():
        if unit_of(path) == unit:
            for module, line in imports(path):
                for banned in NEVER[unit]:
                    assert not f"{module}.".startswith(f"{banned}."), f"{path}:{line}: {unit} imports {module}"


def test_only_storage_opens_bytes_by_uri() -> None:
    for path in files():
        if unit_of(path) == "storage":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fsspec":
                assert node.attr not in ("open", "filesystem", "get_mapper", "open_files"), f"{path}:{node.lineno}"
            assert not (isinstance(node, ast.Attribute) and node.attr == "url_to_fs"), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "module",
    [
        "maas_ray",
        "maas_ray.cli",
        "maas_ray.views.status",
        "maas_ray.views.runs",
        "maas_ray.cluster",
        "maas_ray.registry.versions",
        "maas_ray.data.dataset",
        "maas_ray.views.dataset.text",
        "maas_ray.training.spec",
        "maas_ray.serve.spec",
        "maas_ray.batch.spec",
    ],
)
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "[]"


def test_the_command_line_loads_next_to_nothing() -> None:
    """`maas --help` answers at once: not even the libraries that every spec needs."""
    code = "import sys, maas_ray.cli; print(sorted({'numpy', 'pydantic', 'pyarrow', 'fsspec'} & set(sys.modules)))"

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "[]"


def test_the_verbs_keep_their_names_whatever_is_imported() -> None:
    import maas_ray
    import maas_ray.evaluation.run
    import maas_ray.training.spec  # importing a subpackage binds its name in the package

    for verb in ("prepare", "train", "evaluate", "predict", "deploy", "undeploy", "endpoints"):
        assert callable(getattr(maas_ray, verb)), verb
    for name in maas_ray.__all__:
        assert getattr(maas_ray, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Trian'"):
        _ = maas_ray.Trian
