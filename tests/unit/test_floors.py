"""The package is built as docs/architecture.md draws it: imports lead downwards, and never in a circle.

Every import counts: at the top of a module, inside a function, and under `TYPE_CHECKING`.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "maas_ray"
# Rooms, lowest floor first. A room imports from itself and from lower floors. Jobs are scripts beside the package.
FLOORS = [
    {"version", "redact"},
    {"errors"},
    {"spec", "bodies"},
    {"settings", "terminal"},
    {"storage", "database", "user_code", "ray_private"},
    {"tasks"},
    {"cluster", "own", "sample_data"},
    {"data", "registry"},
    {"training", "evaluation"},
    {"serve"},
    {"batch"},
    {"views"},
    {"cli"},
    {"__init__"},  # the verbs, which import their rooms when they are called; no room imports this one
    {"jobs"},
]
# The same inside the large rooms: folders and modules of one room.
INNER_FLOORS = {
    "data": [
        {"names", "profile"},
        {"sources"},
        {"kept_columns", "known", "manifest", "shards"},
        {"dataset", "cleaning"},
        {"reading", "damage"},
        {"splits"},
        {"dedup"},
        {"spec"},
        {"pipeline"},
        {"plan"},
        {"commit"},
        {"prepare", "dry_run"},
    ],
    "tasks": [
        {"traits", "metrics", "networks", "rows", "cells", "pretrained_weights"},
        {"network"},
        {"custom_network"},
        {"task"},
        {"base", "classifying", "custom_task", "fitting", "pretrained"},
        {"text", "tables", "vision", "speech"},
    ],
    "serve": [
        {"caller", "deadline", "resources"},
        {"spec"},
        {"routes"},
        {"text"},
        {"api"},  # the protocols: no Ray, no registry
        {"engines", "readiness"},
        {"upstreams"},
        {"autoscaling", "resolve", "calls", "replicas"},
        {"gateway", "model_app"},
        {"shared"},
        {"deployment"},
    ],
}
# room: packages that it must never import
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
MAX_LINES = 400
MAX_MODULES = 15

ROOMS = sorted({room for floor in FLOORS for room in floor})


class Import(NamedTuple):
    """One import statement's module, as precisely as the statement names it, and its place."""

    name: str
    place: str


@cache
def modules() -> dict[str, Path]:
    """Every module of the package and every job, by its dotted name."""
    paths = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "jobs").glob("*.py")])
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def imports(module: str) -> tuple[Import, ...]:
    """Every import of a module, wherever it stands: `from a import b` is `a.b` if that is a module, else `a`."""
    path = modules()[module]
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            base = str(node.module)
            named = [f"{base}.{name.name}" for name in node.names]
            names = [name if name in modules() else base for name in named]
        else:
            continue
        found += [Import(name, f"{path.relative_to(ROOT)}:{node.lineno}") for name in names]
    return tuple(found)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(module: str) -> str:
    first, *rest = module.split(".")
    return first if first == "jobs" else rest[0] if rest else "__init__"


def members(room: str) -> list[str]:
    return [module for module in modules() if room_of(module) == room]


def heights(floors: list[set[str]]) -> dict[str, int]:
    return {unit: height for height, units in enumerate(floors) for unit in units}


def circles(graph: dict[str, set[str]]) -> Iterator[set[str]]:
    """The strongly connected components of more than one module."""
    graph = {module: set(targets) for module, targets in graph.items()}
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            start = error.args[1][0]
        else:
            return
        circle = reachable(graph, start) & reachable({m: {a for a in graph if m in graph[a]} for m in graph}, start)
        yield circle
        for module in circle:
            graph[module] -= circle


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, queue = {start}, [start]
    while queue:
        fresh = graph[queue.pop()] - seen
        seen |= fresh
        queue += fresh
    return seen


@cache
def all_circles() -> list[set[str]]:
    graph = {module: {i.name for i in imports(module) if i.name in modules()} - {module} for module in modules()}
    return list(circles(graph))


def test_every_room_has_a_floor() -> None:
    assert {room_of(module) for module in modules()} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_lower_floors(room: str) -> None:
    height = heights(FLOORS)
    for module in members(room):
        for imported in imports(module):
            if imported.name not in modules() or (target := room_of(imported.name)) == room:
                continue
            assert height[target] < height[room], f"{imported.place}: {room} imports {imported.name}"


@pytest.mark.parametrize("room", sorted(INNER_FLOORS))
def test_inside_a_large_room_imports_lead_downwards_too(room: str) -> None:
    height = heights(INNER_FLOORS[room])
    for module in members(room):
        if module == f"maas_ray.{room}":
            continue  # the room's own __init__ stands above all of it
        unit = module.split(".")[2]
        assert unit in height, f"{module}: has no floor inside {room}"
        for imported in imports(module):
            if imported.name not in modules() or room_of(imported.name) != room:
                continue
            assert imported.name != f"maas_ray.{room}", f"{imported.place}: imports its own room's __init__"
            target = imported.name.split(".")[2]
            assert target == unit or height[target] < height[unit], f"{imported.place}: imports {imported.name}"


@pytest.mark.parametrize("room", ROOMS)
def test_no_imports_run_in_a_circle(room: str) -> None:
    assert [sorted(circle) for circle in all_circles() if circle & set(members(room))] == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"e", "a"}}

    assert sorted(map(sorted, circles(graph))) == [["b", "c"], ["e", "f"]]


@pytest.mark.parametrize("room", NEVER)
def test_a_room_never_imports_some_packages(room: str) -> None:
    for module in members(room):
        for imported in imports(module):
            for banned in NEVER[room]:
                assert not f"{imported.name}.".startswith(f"{banned}."), f"{imported.place}: imports {imported.name}"


@pytest.mark.parametrize("package", ["maas_ray.serve.api", "maas_ray.serve.text"])
def test_the_protocols_import_neither_ray_nor_the_registry(package: str) -> None:
    for module in modules():
        if module.startswith(f"{package}."):
            for imported in imports(module):
                assert not f"{imported.name}.".startswith(("ray.", "maas_ray.registry.")), imported.place


def test_only_storage_opens_bytes_by_uri() -> None:
    for module, path in modules().items():
        if room_of(module) == "storage":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fsspec":
                assert node.attr not in ("open", "filesystem", "get_mapper", "open_files"), f"{path}:{node.lineno}"
            assert not (isinstance(node, ast.Attribute) and node.attr == "url_to_fs"), f"{path}:{node.lineno}"


@pytest.mark.parametrize("room", ROOMS)
def test_modules_and_folders_stay_small(room: str) -> None:
    paths = [modules()[module] for module in members(room)]
    long = [path for path in paths if path.read_text(encoding="utf-8").count("\n") > MAX_LINES]
    wide = [
        folder
        for folder in {path.parent for path in paths} - {PACKAGE}
        if len([path for path in folder.glob("*.py") if path.stem != "__init__"]) > MAX_MODULES
    ]

    assert (long, wide) == ([], [])


def test_test_files_stay_small_too() -> None:
    paths = (ROOT / "tests").rglob("*.py")

    assert [path for path in paths if path.read_text(encoding="utf-8").count("\n") > MAX_LINES] == []


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


@pytest.mark.parametrize("module", ["maas_ray.data.pipeline.read_rows", "maas_ray.training.worker.entry"])
def test_workers_load_no_database(module: str) -> None:
    """Each worker of a preparation or a training loads its module anew; alembic alone takes as long as all of ours."""
    code = f"import sys, {module}; print(sorted({{'sqlalchemy', 'alembic', 'mlflow'}} & set(sys.modules)))"

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
