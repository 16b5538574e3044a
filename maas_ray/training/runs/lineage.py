"""Code revision and package versions of this process, recorded with the model it makes."""

import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("maas-ray", "ray", "torch", "deepspeed", "transformers", "tokenizers", "pyarrow", "numpy")


def code_revision(directory: Path) -> str:
    """Git revision of a directory, with `+dirty` if files differ from it. Empty: not a checkout."""
    try:
        revision = _git(directory, "rev-parse", "HEAD")
        changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return revision + ("+dirty" if changed else "")


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a model."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a working directory, not installed
            continue
    return versions


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()
