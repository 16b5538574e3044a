"""Python files of a module or package: found on the import path, carried in artefacts, run in this process.

The copy is what runs, in `prepare` as in serving, so the code that is carried is the code that was used, and two
versions of one file live side by side. A single file travels alone, a package whole (its `*.py`).
"""

import ast
import builtins
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from maas_ray.errors import CorruptError, DataError
from maas_ray.spec import digest_of

DIRECTORY = "source"
_ROOT = "maas_own_"
_MAX_BYTES = 16 << 20

_running: dict[str, "SourceCode"] = {}
"""Code that this process runs, by the name of its package."""


def is_import_path(name: Any) -> bool:
    """True if a `type` has the form `package.module:Name`."""
    return isinstance(name, str) and ":" in name


@dataclass(frozen=True)
class SourceCode:
    """Files of one module, or of its whole package: (path, content), with paths relative to the import path."""

    files: tuple[tuple[str, bytes], ...]

    @cached_property
    def digest(self) -> str:
        """Digest of names and content, 16 hex digits."""
        return digest_of([[path, hashlib.sha256(content).hexdigest()] for path, content in sorted(self.files)])[:16]

    @property
    def root(self) -> str:
        """Name of the package that the code runs as."""
        return f"{_ROOT}{self.digest}"

    @property
    def top(self) -> str:
        """Name of the top module or package."""
        return self.files[0][0].partition("/")[0].removesuffix(".py")

    @classmethod
    def find(cls, module: str) -> "SourceCode":
        """The source of a module on the import path.

        Raises:
            DataError: there is no such module, or it is not plain Python.
        """
        top = module.partition(".")[0]
        spec = _on_path(top)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            problem = "is not a Python file or a directory with __init__.py" if spec else "was not found"
            raise DataError(
                f"the module {top!r} {problem}; the search path is the working directory, then Python's own.",
                code="module_missing",
            )
        origin = Path(spec.origin)
        if not spec.submodule_search_locations:
            files = [(f"{top}.py", origin.read_bytes())]
            _refuse_neighbours(origin, top)
        else:
            base = origin.parent
            files = [
                (f"{top}/{path.relative_to(base).as_posix()}", path.read_bytes())
                for path in sorted(base.rglob("*.py"))
                if not any(part.startswith(".") for part in path.relative_to(base).parts)
            ]
        if (size := sum(len(content) for _, content in files)) > _MAX_BYTES:
            raise DataError(
                f"the package {top!r} has {size / 1e6:.0f} MB of Python files; move the code that is needed into a "
                "smaller package.",
                code="code_too_large",
            )
        return cls(tuple(files))

    @classmethod
    def load(cls, directory: Path, digest: str) -> "SourceCode":
        """The code in an artefact's local copy.

        Raises:
            CorruptError: the code is missing or does not match its digest.
        """
        base = directory / DIRECTORY / digest
        paths = sorted(base.rglob("*.py")) if base.is_dir() else []
        source = cls(tuple((path.relative_to(base).as_posix(), path.read_bytes()) for path in paths))
        if not paths or source.digest != digest:
            raise CorruptError(f"the code in {base} does not match its digest.", code="digest_mismatch")
        return source

    def write(self, directory: Path) -> None:
        """Write the files to where `load` reads them."""
        for path, content in self.files:
            target = directory / DIRECTORY / self.digest / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def module(self, name: str) -> ModuleType:
        """One of its modules, imported once in a process.

        Raises:
            DataError: the import fails.
        """
        _install(self)
        try:
            return importlib.import_module(f"{self.root}.{name}")
        except Exception as error:
            for loaded in [name for name in sys.modules if name.startswith(f"{self.root}.{self.top}")]:
                del sys.modules[loaded]
            raise DataError(
                f"importing {name} failed: {type(error).__name__}: {error}", code="import_failed"
            ) from error

    def attribute(self, path: str) -> Any:
        """The object at `module:Name`.

        Raises:
            DataError: the module does not define it.
        """
        module, _, name = path.partition(":")
        value = getattr(self.module(module), name, None)
        if value is None:
            raise DataError(f"the module {module!r} does not define {name!r}.", code="attribute_missing")
        return value


def _on_path(top: str) -> importlib.machinery.ModuleSpec | None:
    """The location of a module, the working directory first, as for `python FILE`. Nothing is imported."""
    here = os.getcwd()
    path = sys.path if here in sys.path else [here, *sys.path]
    importlib.invalidate_caches()
    return importlib.machinery.PathFinder.find_spec(top, path)


def _refuse_neighbours(origin: Path, top: str) -> None:
    """Refuse a single file that imports a neighbour: the neighbour would not be carried."""
    try:
        tree = ast.parse(origin.read_bytes())
    except SyntaxError as error:
        raise DataError(f"{origin}, line {error.lineno}: {error.msg}.", code="invalid_python") from error
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module or ""] if node.level == 0 else ["."]
        for name in names:
            beside = name.partition(".")[0]
            there = (origin.parent / f"{beside}.py").is_file() or (origin.parent / beside / "__init__.py").is_file()
            if name == "." or (beside not in (top, "maas_ray") and there and origin.parent.name != "site-packages"):
                raise DataError(
                    f"{origin}, line {node.lineno}: imports the neighbour {beside!r}, which would not be carried with "
                    "the model. Put both into a package, a directory with __init__.py, and name its module.",
                    code="neighbour_import",
                )


# --- running ---------------------------------------------------------------------------------------


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules of the code that this process runs."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        root, _, rest = name.partition(".")
        source = _running.get(root)
        if source is None:
            return None
        files = dict(source.files)
        inside = rest.replace(".", "/")
        for file, package in ((f"{inside}/__init__.py", True), (f"{inside}.py", False)):
            if file in files:
                loader = _Loader(source, name, file, files[file])
                return importlib.util.spec_from_loader(name, loader, origin=loader.path, is_package=package)
        if not rest:
            return importlib.machinery.ModuleSpec(name, None, is_package=True)
        return None


class _Loader(importlib.abc.InspectLoader):
    """Runs a file of some code. If the code imports its own package, it gets this copy."""

    def __init__(self, source: SourceCode, name: str, file: str, content: bytes) -> None:
        self._source, self._name, self._content = source, name, content
        self.path = f"<{source.digest}>/{file}"

    def is_package(self, fullname: str) -> bool:
        return self.path.endswith("/__init__.py")

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._content)

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self.path
        module.__dict__["__builtins__"] = vars(builtins) | {"__import__": self._import}
        exec(compile(self._content, self.path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102

    def _import(
        self, name: str, globals_: Any = None, locals_: Any = None, fromlist: Sequence[str] = (), level: int = 0
    ) -> ModuleType:
        top = self._source.top
        if level or name.partition(".")[0] != top:
            return builtins.__import__(name, globals_, locals_, fromlist, level)
        module = builtins.__import__(f"{self._source.root}.{name}", globals_, locals_, fromlist, 0)
        return module if fromlist else sys.modules[f"{self._source.root}.{top}"]


def _install(source: SourceCode) -> None:
    """Make the code's modules importable in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _running.setdefault(source.root, source)
    os.environ.setdefault("KERAS_BACKEND", "torch")  # models of other backends are not torch modules


def source_of(value: Any) -> SourceCode | None:
    """The user code that defines a class or function. None: it is not user code."""
    return _running.get(str(getattr(value, "__module__", "")).partition(".")[0])
