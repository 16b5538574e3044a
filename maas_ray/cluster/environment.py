"""Environment variables that processes of one cluster share: settings, authentication, loopback."""

import os
import sys
from pathlib import Path
from typing import Any

from maas_ray.ray_private.core import use_loopback
from maas_ray.settings import Settings

AUTH = "RAY_AUTH_MODE"
# Ray's switch for a cluster of one machine. Each process that sets it binds its ports to loopback.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


# Addresses that may contain passwords. Only drivers and the reconciler use them, and those get them otherwise.
_ADDRESSES = ("MAAS_DATABASE", "MAAS_MLFLOW")
_TRUST = "MAAS_TRUST_REMOTE_CODE"
_OF_WORKERS = ("MAAS_HOME", "MAAS_STORAGE", _TRUST)


def worker_environment(settings: Settings) -> dict[str, str]:
    """The variables that every worker process needs. The dashboard shows them."""
    given = settings.environment()
    return {name: given[name] for name in _OF_WORKERS} | {"RAY_TRAIN_V2_ENABLED": "1"}


def replica_runtime_env(*, user_code: bool) -> dict[str, Any]:
    """The runtime environment of a Serve replica.

    Serve would copy the deployer's job into it: its working directory, and every variable, for all to see in the
    dashboard. It also replaces running replicas when it changes. So it has only what a replica needs, and nothing that
    differs between deployers of one platform.

    Args:
        user_code: the replica loads bundles, so it must know whether their code may run.
    """
    import ray

    # A node may have the addresses in its own environment, for the drivers of submitted jobs.
    variables = dict.fromkeys(_ADDRESSES, "")
    if user_code:
        job = (ray.get_runtime_context().runtime_env or {}).get("env_vars") or {}
        given = {name: value for name, value in {**os.environ, **job}.items() if name == _TRUST}
        variables[_TRUST] = str(Settings.from_environment(given).trust_remote_code)
    return {"env_vars": variables, "working_dir": None}


def has_token() -> bool:
    """True if this user has a token for Ray's token authentication."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(path).is_file()


def adopt(auth: str, *, loopback: bool) -> None:
    """Make this process authenticate and address as its cluster does.

    Args:
        auth: value of RAY_AUTH_MODE.
        loopback: the cluster's addresses are on loopback.
    """
    os.environ[AUTH] = auth
    if loopback:
        os.environ.update(LOOPBACK)
    if "ray" in sys.modules:  # it has read these variables already
        use_loopback(loopback)
