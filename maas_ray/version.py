"""The version, the directory and the code of this package. Imports nothing of it, so any module may import this one."""

import hashlib
from pathlib import Path

__version__ = "0.2.0"

PACKAGE = Path(__file__).parent
"""The directory of the package."""


def compute_code_version() -> str:
    """A digest of the package's code as it is installed now."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
