"""Decides whose code may run in this process.

Code from an artefact runs only if `MAAS_TRUST_REMOTE_CODE` allows it, or if the caller has the very same code on the
import path. A process that received an object of such code from another process of its job runs it too.
"""

from collections.abc import Iterable
from pathlib import Path

from maas_ray.errors import DataError, UntrustedCodeError
from maas_ray.settings import Settings
from maas_ray.user_code.source import DIRECTORY, SourceCode

SETTING = "MAAS_TRUST_REMOTE_CODE"

_vouched: set[str] = set()
"""Digests of code that a process of this job has on its import path."""


def trusted() -> bool:
    """True if code from artefacts may run here."""
    return Settings.from_environment(strict=False).trust_remote_code


def vouched() -> frozenset[str]:
    """Digests of the code that may run in every process of this job."""
    return frozenset(_vouched)


def vouch(digests: Iterable[str]) -> None:
    """Let code run that another process of this job vouched for."""
    _vouched.update(digests)


def local(path: str) -> SourceCode:
    """The caller's own code for an import path, which may always run.

    Raises:
        DataError: there is no such module.
    """
    source = SourceCode.find(path.partition(":")[0])
    _vouched.add(source.digest)
    return source


def admitted(directory: Path, digest: str, path: str) -> SourceCode:
    """The code that an artefact's local copy brings for an import path, if it may run.

    Raises:
        UntrustedCodeError: the code may not run here.
    """
    source = SourceCode.load(directory, digest)
    if digest not in _vouched and not trusted():
        try:
            here = SourceCode.find(path.partition(":")[0])
        except DataError as error:
            raise UntrustedCodeError(f"{_brings(path, digest)} {error}", code=error.code) from None
        if here.digest != digest:
            raise UntrustedCodeError(f"{_brings(path, digest)} {changed(path, here, source)}", code="code_changed")
        _vouched.add(digest)
    return source


def check_carried(directory: Path, artefact: str) -> None:
    """Return if all code in an artefact's local copy may run; code on the import path does not vouch for it here.

    Args:
        directory: the local copy.
        artefact: its name, for the message.

    Raises:
        UntrustedCodeError: it brings code, which may not run here.
    """
    base = directory / DIRECTORY
    files = sorted(path.relative_to(base).as_posix() for path in base.rglob("*.py")) if base.is_dir() else []
    if files and not trusted():
        raise UntrustedCodeError(
            f"{artefact} brings code of its own ({', '.join(files)} under {DIRECTORY}/), which this platform may not "
            f"run. Read the code; if you trust it, set {SETTING}=1 for the deployer and the cluster."
        )


def _brings(path: str, digest: str) -> str:
    return f"this dataset or model brings code of its own ({path}, digest {digest}). Set {SETTING}=1 to let it run."


def changed(path: str, here: SourceCode, carried: SourceCode) -> str:
    """A sentence that names the files in which two versions of the code differ."""
    ours, theirs = dict(here.files), dict(carried.files)
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return f"the code of {path} has changed since it was prepared ({', '.join(names)})."
