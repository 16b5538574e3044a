"""Shell completion of names, as far as it is cheap: it runs at every press of the tab key.

Models are not completed: MLflow takes seconds to import. A name that cannot be read completes to nothing, because
a shell shows errors of a completion in the middle of the user's line.
"""

from contextlib import suppress
from pathlib import Path


def spec_files(incomplete: str) -> list[str]:
    """YAML files, and directories that can hold them."""
    directory, _, start = incomplete.rpartition("/")
    prefix = f"{directory}/" if "/" in incomplete else ""
    with suppress(OSError):
        entries = sorted(Path(prefix or ".").iterdir())
        return [
            f"{prefix}{entry.name}" + ("/" if entry.is_dir() else "")
            for entry in entries
            if entry.name.startswith(start)
            and not (entry.name.startswith(".") and not start)
            and (entry.is_dir() or entry.suffix in (".yaml", ".yml"))
        ]
    return []


def datasets(incomplete: str) -> list[str]:
    """Names of prepared datasets on a local disk."""
    with suppress(Exception):
        from maas_ray import storage
        from maas_ray.data.known import names
        from maas_ray.settings import Settings

        root = storage.join(Settings.from_environment().storage, "datasets")
        if storage.is_local(root):
            return [name for name in names(root) if name.startswith(incomplete)]
    return []


def endpoints(incomplete: str) -> list[str]:
    """Names of endpoints in the platform's database."""
    with suppress(Exception):
        from maas_ray.serve.deployment.endpoints import Endpoints
        from maas_ray.settings import Settings, exists

        settings = Settings.from_environment()
        if exists(settings.database):
            return [record.name for record in Endpoints(settings).all() if record.name.startswith(incomplete)]
    return []


def log_sources(incomplete: str) -> list[str]:
    """Sources of logs that need no cluster to be known."""
    return [name for name in ("cluster", "gateway") if name.startswith(incomplete)] + endpoints(incomplete)
