"""Settings: the `MAAS_*` environment variables, with defaults that work on one machine.

    MAAS_HOME           ~/.maas                       state of this machine, such as the cluster that `maas up` started
    MAAS_STORAGE        $MAAS_HOME/storage            fsspec URI of datasets, checkpoints and bundles
    MAAS_MLFLOW         sqlite:///$MAAS_HOME/mlflow.db  MLflow tracking and registry URI
    MAAS_DATABASE       sqlite:///$MAAS_HOME/maas.db  SQLAlchemy URL of the endpoints
    MAAS_HTTP_HOST      127.0.0.1                     address the gateway listens on
    MAAS_HTTP_PORT      8000                          port the gateway listens on
    MAAS_SHARED                                       YAML file with the options of shared replicas, see `SharedArgs`,
                                                      or the options themselves: {max_models: 4}
    MAAS_GATEWAY                                      YAML file with the options of the gateway, see `GatewayArgs`, or
                                                      the options themselves: {body_limit_mb: 4}
    MAAS_GRPC_PORT      8001                          port of the gateway's gRPC; 0 turns gRPC off
    MAAS_RECONCILE_SECONDS  60                    pause between unattended reconciliations; 0 reconciles on request
    MAAS_CACHE_GB       20                            disk for fetched bundles, and for converted models
    MAAS_TRUST_REMOTE_CODE  0                         1 runs the code that datasets and bundles contain
    MAAS_VERBOSE        0                             1 shows Ray's own log lines and tracebacks of errors

Relative paths are taken from the working directory, once: other processes of the platform get them as absolute ones.
The Ray cluster is chosen by Ray's own variables: `RAY_ADDRESS`, `RAY_AUTH_MODE`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from maas_ray.errors import InvalidError, Problem, SpecError
from maas_ray.redact import hide_secrets
from maas_ray.spec import Spec
from maas_ray.spec.problems import closest

PREFIX = "MAAS_"
_SERVICE = re.compile(r"MAAS_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SQLITE_FILE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!:memory:|file:)(.+)")


class Settings(Spec):
    """Resolved settings."""

    home: str = "~/.maas"
    """Directory of this machine's state."""
    storage: str = ""
    """Fsspec URI or path of datasets, checkpoints and bundles."""
    mlflow: str = ""
    """MLflow tracking and registry URI."""
    database: str = ""
    """SQLAlchemy URL of the platform's database."""
    http_host: str = "127.0.0.1"
    """Address that the gateway listens on. 0.0.0.0 opens it to the network."""
    http_port: int = Field(8000, ge=1, le=65535)
    """Port that the gateway listens on."""
    shared: str = ""
    """YAML file with the options of the platform's shared replicas, or the options as a YAML mapping in braces.
    Empty: the defaults."""
    gateway: str = ""
    """YAML file with the options of the gateway, or the options as a YAML mapping in braces. Empty: the defaults."""
    grpc_port: int = Field(8001, ge=0, le=65535)
    """Port of the gateway's gRPC, at the same address. 0: gRPC is off."""
    reconcile_seconds: float = Field(60, ge=0)
    """Pause between two unattended reconciliations, seconds. 0: only `maas reconcile` and `maas up` reconcile."""
    cache_gb: float = Field(20, gt=0)
    """Disk for bundles that this machine's replicas have fetched, GB, and as much again for converted models. The least
    recently used ones are deleted; those in use stay, even if they are more."""
    trust_remote_code: bool = False
    """True lets the code that datasets and bundles contain run."""
    verbose: bool = False
    """True shows Ray's own log lines and tracebacks of errors."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: dict[str, str]) -> dict[str, str]:
        home = Path(values.get("home") or "~/.maas").expanduser().absolute()
        defaults = {
            "storage": str(home / "storage"),
            "mlflow": f"sqlite:///{home}/mlflow.db",
            "database": f"sqlite:///{home}/maas.db",
        }
        filled = {**values, "home": str(home)} | {k: v for k, v in defaults.items() if not values.get(k)}
        if hide_secrets(filled["storage"]) != filled["storage"]:
            raise InvalidError(
                "plain_password",
                "storage: contains a password or a key, and URIs below it are recorded with every dataset, run and "
                "version. Write the URI without it, and set it where Ray starts, on every node: in a variable of the "
                "storage (AWS_…), or of fsspec (FSSPEC_SFTP_PASSWORD for sftp://).",
            )
        return {name: _absolute(name, value) for name, value in filled.items()}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, *, strict: bool = True) -> "Settings":
        """Read the `MAAS_*` variables. Those that Kubernetes sets for a service called `maas-…` are ignored.

        Args:
            environment: the variables. None: those of this process.
            strict: unknown variables are errors. In workers and replicas they are not: whoever started the node may
                have set one, and no user is there to correct it.

        Raises:
            SpecError: a value is wrong, or a variable is unknown, which is most likely a misspelling.
        """
        environment = os.environ if environment is None else environment
        variables = {PREFIX + name.upper(): name for name in cls.model_fields}
        given = {
            name: value
            for name, value in environment.items()
            if name.startswith(PREFIX) and not _of_kubernetes(name, value)
        }
        problems: list[Problem] = []
        for unknown in sorted(given.keys() - variables.keys()) if strict else ():
            near = closest(unknown, variables)
            fix = f"did you mean {near}?" if near else f"settings: {', '.join(variables)}."
            problems.append(Problem(f"{unknown}: there is no such setting; {fix}", "unknown_setting"))
        try:
            settings = cls.parse({variables[name]: value for name, value in given.items() if name in variables})
        except SpecError as error:
            for problem in error.problems:  # begins with the field's name, but the user set a variable
                field, _, rest = problem.partition(":")
                problems.append(Problem(f"{PREFIX}{field.upper()}:{rest}", problem.code))
        if problems:
            raise SpecError("environment", problems)
        return settings

    def environment(self) -> dict[str, str]:
        """The environment variables that give another process the same settings."""
        return {PREFIX + name.upper(): str(value) for name, value in self.document().items()}


def _of_kubernetes(name: str, value: str) -> bool:
    """True if Kubernetes sets the variable for a service, in the form that Docker's links had."""
    return bool(_SERVICE.fullmatch(name)) or (name.endswith("PORT") and "://" in value)


def _absolute(name: str, value: Any) -> Any:
    """A setting with its local path made absolute, if it has one: a cluster's processes work in other directories."""
    if not isinstance(value, str):
        return value
    if name in ("mlflow", "database"):
        return _SQLITE_FILE.sub(lambda url: url[1] + os.path.abspath(url[2]), value)
    options = name in ("shared", "gateway") and value and not value.startswith("{")
    path = options or (name == "storage" and "://" not in value)
    return os.path.abspath(os.path.expanduser(value)) if path else value


def exists(database: str) -> bool:
    """False for an SQLite URL whose file does not exist, because reading must not create it. True for other URLs."""
    path = database.removeprefix("sqlite:///")
    return path == database or Path(path).exists()
