"""Environment variables that processes of one cluster share: settings, authentication, loopback."""

import os
import sys
from pathlib import Path

from maas_ray.ray_private.core import use_loopback
from maas_ray.settings import Settings

AUTH = "RAY_AUTH_MODE"
# Ray's switch for a cluster of one machine. Each process that sets it binds its ports to loopback.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def worker_environment(settings: Settings) -> dict[str, str]:
    """The variables that every worker process needs."""
    return settings.environment() | {"RAY_TRAIN_V2_ENABLED": "1"}


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
