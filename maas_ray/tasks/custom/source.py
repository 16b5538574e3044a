"""Code of the user's own: found on the import path, carried in artefacts, run under a name that holds its digest.

    my_tasks.py ──found──▶ Source ──written──▶ task/source/<digest>/my_tasks.py  (a dataset's, and a bundle's)
                             └─────run as────▶ module `maas_own_<digest>.my_tasks`

What runs is always the copy, in `prepare` as in serving, so what is carried is what was used, and two versions of one
file live side by side. A single file travels alone, a package whole (its `*.py`).

Code that an artefact brings runs only where `MAAS_TRUST_REMOTE_CODE` allows, or where the caller has the very same code
on the import path. A process that was handed an object of such code by another of its job runs it too.
"""

import ast
import builtins
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from maas_ray.errors import CorruptError, DataError, UntrustedCodeError
from maas_ray.settings import Settings
from maas_ray.spec import digest_of

DIRECTORY = "source"
SETTING = "MAAS_TRUST_REMOTE_CODE"
_ROOT = "maas_own_"
_MOST_BYTES = 16 << 20

_running: dict[str, "Source"] = {}
"""By the name of the package that they run as."""
_vouched: set[str] = set()
"""Digests of code that somebody in this job has on their import path."""


def is_import_path(name: Any) -> bool:
    """Whether a `type` is written as `package.module:Name`."""
    return isinstance(name, str) and ":" in name


@dataclass(frozen=True)
class Source:
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
    def found(cls, module: str) -> "Source":
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
    def carried(cls, directory: Path, digest: str) -> "Source":
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
        """Put the files where `carried` finds them."""
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

    def __init__(self, source: Source, name: str, file: str, content: bytes) -> None:
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


def _install(source: Source) -> None:
    """Make a source's modules importable in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _running.setdefault(source.root, source)
    os.environ.setdefault("KERAS_BACKEND", "torch")  # another backend's models are no modules of torch's


def source_of(made: Any) -> Source | None:
    """The source that a class or function is from; None: it is no own code."""
    return _running.get(str(getattr(made, "__module__", "")).partition(".")[0])


# --- whose code may run ----------------------------------------------------------------------------


def trusted() -> bool:
    """Whether code out of artefacts may run here."""
    return Settings.from_environment().trust_remote_code


def vouched() -> frozenset[str]:
    """Digests of the code that may run in every process of this job."""
    return frozenset(_vouched)


def vouch(digests: Iterable[str]) -> None:
    """Let code run that another process of this job vouched for."""
    _vouched.update(digests)


def local(path: str) -> Source:
    """The caller's own code, for an import path; it needs no allowance.

    Raises:
        DataError: there is none.
    """
    source = Source.found(path.partition(":")[0])
    _vouched.add(source.digest)
    return source


def admitted(directory: Path, digest: str, path: str) -> Source:
    """The code that an artefact's local copy brings for an import path, if it may run.

    Raises:
        UntrustedCodeError: it may not.
    """
    source = Source.carried(directory, digest)
    if digest not in _vouched and not trusted():
        try:
            here = Source.found(path.partition(":")[0])
        except DataError as error:
            raise UntrustedCodeError(f"{_brings(path, digest)} {error}") from None
        if here.digest != digest:
            raise UntrustedCodeError(f"{_brings(path, digest)} {changed(path, here, source)}")
        _vouched.add(digest)
    return source


def check_carried(directory: Path, what: str) -> None:
    """See that the code which an artefact's local copy brings may run; nobody on an import path vouches for it here.

    Raises:
        UntrustedCodeError: it may not.
    """
    base = directory / DIRECTORY
    files = sorted(path.relative_to(base).as_posix() for path in base.rglob("*.py")) if base.is_dir() else []
    if files and not trusted():
        raise UntrustedCodeError(
            f"{what} brings code of its own ({', '.join(files)} under {DIRECTORY}/), which this platform is not "
            f"allowed to run. Read it; where you trust it, set {SETTING}=1 for the deployer and the cluster."
        )


def _brings(path: str, digest: str) -> str:
    return f"this dataset or model brings code of its own ({path}, digest {digest}); {SETTING}=1 lets it run."


def changed(path: str, here: Source, carried: Source) -> str:
    """A sentence that names the files in which two versions of some code differ."""
    ours, theirs = dict(here.files), dict(carried.files)
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return f"{path} has changed since it was prepared ({', '.join(names)})."
