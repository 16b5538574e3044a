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
_MOST_BYTES = 16 << 20

_running: dict[str, "SourceCode"] = {}
"""By the name of the package that they run as."""


def is_import_path(name: Any) -> bool:
    """Whether a `type` is written as `package.module:Name`."""
    return isinstance(name, str) and ":" in name


@dataclass(frozen=True)
class SourceCode:
    """Files of one module, or of the package it lies in: (path, content), paths as below the import path."""

    files: tuple[tuple[str, bytes], ...]

    @cached_property
    def digest(self) -> str:
        """Of names and content."""
        return digest_of([[path, hashlib.sha256(content).hexdigest()] for path, content in sorted(self.files)])[:16]

    @property
    def root(self) -> str:
        """The package that it runs as."""
        return f"{_ROOT}{self.digest}"

    @property
    def top(self) -> str:
        """The module or package that was carried."""
        return self.files[0][0].partition("/")[0].removesuffix(".py")

    @classmethod
    def find(cls, module: str) -> "SourceCode":
        """The source of a module on the import path.

        Raises:
            DataError: there is no such module, or it is not Python's alone.
        """
        top = module.partition(".")[0]
        spec = _on_path(top)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            what = "is no Python file, or a directory without __init__.py" if spec else "is not there"
            raise DataError(
                f"the module {top!r} {what}; it is looked for in the working directory and where Python does."
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
        if (size := sum(len(content) for _, content in files)) > _MOST_BYTES:
            raise DataError(
                f"the package {top!r} has {size / 1e6:.0f} MB of Python; put what is needed into a smaller one."
            )
        return cls(tuple(files))

    @classmethod
    def load(cls, directory: Path, digest: str) -> "SourceCode":
        """The source that lies in an artefact's local copy.

        Raises:
            CorruptError: it is not there, or is not what its name says.
        """
        base = directory / DIRECTORY / digest
        paths = sorted(base.rglob("*.py")) if base.is_dir() else []
        source = cls(tuple((path.relative_to(base).as_posix(), path.read_bytes()) for path in paths))
        if not paths or source.digest != digest:
            raise CorruptError(f"{base} does not hold the code that it is named for.")
        return source

    def write(self, directory: Path) -> None:
        """Put the files from which `load` reads them."""
        for path, content in self.files:
            target = directory / DIRECTORY / self.digest / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def module(self, name: str) -> ModuleType:
        """One of its modules, run once in a process.

        Raises:
            DataError: it raises when it is run.
        """
        _install(self)
        try:
            return importlib.import_module(f"{self.root}.{name}")
        except Exception as error:
            for loaded in [one for one in sys.modules if one.startswith(f"{self.root}.{self.top}")]:
                del sys.modules[loaded]
            raise DataError(f"importing {name} failed: {type(error).__name__}: {error}") from error

    def attribute(self, path: str) -> Any:
        """What `module:Name` means in it.

        Raises:
            DataError: there is no such thing.
        """
        module, _, name = path.partition(":")
        found = getattr(self.module(module), name, None)
        if found is None:
            raise DataError(f"{module} has no {name!r}.")
        return found


def _on_path(top: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module lies, the working directory first, as for `python FILE`; nothing is imported."""
    here = os.getcwd()
    path = sys.path if here in sys.path else [here, *sys.path]
    importlib.invalidate_caches()
    return importlib.machinery.PathFinder.find_spec(top, path)


def _refuse_neighbours(origin: Path, top: str) -> None:
    """A single file travels alone: it may import nothing that lies beside it."""
    try:
        tree = ast.parse(origin.read_bytes())
    except SyntaxError as error:
        raise DataError(f"{origin}, line {error.lineno}: {error.msg}.") from error
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
                    f"{origin}, line {node.lineno}: imports {beside!r}, which lies beside it and would not travel with "
                    "the model. Make a package of both, a directory with __init__.py, and name its module."
                )


# --- running ---------------------------------------------------------------------------------------


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules of sources that this process runs."""

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
    """Runs a file of a source; an import of its own package means this copy of it."""

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
        found = builtins.__import__(f"{self._source.root}.{name}", globals_, locals_, fromlist, 0)
        return found if fromlist else sys.modules[f"{self._source.root}.{top}"]


def _install(source: SourceCode) -> None:
    """Make a source's modules importable in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _running.setdefault(source.root, source)
    os.environ.setdefault("KERAS_BACKEND", "torch")  # another backend's models are no modules of torch's


def source_of(made: Any) -> SourceCode | None:
    """The source that a class or function is from; None: it is no own code."""
    return _running.get(str(getattr(made, "__module__", "")).partition(".")[0])
