"""Environment variables that processes of one cluster share: settings, authentication, loopback."""

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from maas_ray.ray_private.core import use_loopback
from maas_ray.settings import Settings

AUTH = "RAY_AUTH_MODE"
# Ray's switch for a cluster of one machine. Each process that sets it binds its ports to loopback.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


# Addresses that may contain passwords. Only drivers and the reconciler use them, and those get them otherwise.
_ADDRESSES = ("MAAS_DATABASE", "MAAS_MLFLOW")
_TRUST = "MAAS_TRUST_REMOTE_CODE"
_OF_WORKERS = ("MAAS_HOME", "MAAS_STORAGE", "MAAS_CACHE_GB", _TRUST)


_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_NO_PROXY = ("no_proxy", "NO_PROXY")


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
        user_code: the replica loads bundles, so it must know whether their code may run, and Serve runs it in a thread
            beside its own loop. A gateway blocks no loop, and is faster without the way between threads.
    """
    import ray

    # A node may have the addresses in its own environment, for the drivers of submitted jobs.
    variables = dict.fromkeys(_ADDRESSES, "")
    if user_code:
        job = (ray.get_runtime_context().runtime_env or {}).get("env_vars") or {}
        given = {name: value for name, value in {**os.environ, **job}.items() if name == _TRUST}
        variables[_TRUST] = str(Settings.from_environment(given).trust_remote_code)
    else:
        variables["RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"] = "0"
    return {"env_vars": variables, "working_dir": None}


def without_proxy(addresses: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables by which a process reaches these `host:port` and URLs, and its own machine, without an HTTP proxy.

    A proxy is for the world outside. urllib, requests and gRPC would send it the requests for the cluster too.
    Empty: `environment` has no proxy.
    """
    if not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return {}
    found = (urlsplit(address if "://" in address else f"//{address}").hostname for address in addresses if address)
    present = [name for key in _NO_PROXY for name in environment.get(key, "").split(",")]
    names = [*present, "127.0.0.1", "localhost", "::1", *(host for host in found if host)]
    value = ",".join(dict.fromkeys(name.strip() for name in names if name.strip()))
    return dict.fromkeys(_NO_PROXY, "*" if "*" in value.split(",") else value)


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
