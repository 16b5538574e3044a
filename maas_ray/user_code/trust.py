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
    """Whether code out of artefacts may run here."""
    return Settings.from_environment().trust_remote_code


def vouched() -> frozenset[str]:
    """Digests of the code that may run in every process of this job."""
    return frozenset(_vouched)


def vouch(digests: Iterable[str]) -> None:
    """Let code run that another process of this job vouched for."""
    _vouched.update(digests)


def local(path: str) -> SourceCode:
    """The caller's own code, for an import path; it needs no allowance.

    Raises:
        DataError: there is none.
    """
    source = SourceCode.find(path.partition(":")[0])
    _vouched.add(source.digest)
    return source


def admitted(directory: Path, digest: str, path: str) -> SourceCode:
    """The code that an artefact's local copy brings for an import path, if it may run.

    Raises:
        UntrustedCodeError: it may not.
    """
    source = SourceCode.load(directory, digest)
    if digest not in _vouched and not trusted():
        try:
            here = SourceCode.find(path.partition(":")[0])
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


def changed(path: str, here: SourceCode, carried: SourceCode) -> str:
    """A sentence that names the files in which two versions of some code differ."""
    ours, theirs = dict(here.files), dict(carried.files)
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return f"{path} has changed since it was prepared ({', '.join(names)})."
