"""Where the platform keeps its things: read from `MAAS_*` variables, with defaults that work.

    MAAS_HOME           ~/.maas                       state of this machine: what `maas` started
    MAAS_STORAGE        $MAAS_HOME/storage            any fsspec URI: datasets, checkpoints, bundles
    MAAS_MLFLOW         sqlite:///$MAAS_HOME/mlflow.db  MLflow tracking and registry URI
    MAAS_DATABASE       sqlite:///$MAAS_HOME/maas.db  SQLAlchemy URL: endpoints
    MAAS_HTTP_HOST      127.0.0.1                     address the gateway listens on
    MAAS_HTTP_PORT      8000                          port the gateway listens on
    MAAS_SHARED                                       YAML file: how shared replicas work, see `SharedArgs`
    MAAS_GRPC_PORT      8001                          port of its gRPC; 0: none
    MAAS_TRUST_REMOTE_CODE  0                         1: run the code that datasets and bundles bring
    MAAS_VERBOSE        0                             1: show Ray's own log lines, and tracebacks of errors

Which Ray cluster is used is Ray's own affair: `RAY_ADDRESS`, `RAY_AUTH_MODE`.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, model_validator

from maas_ray.errors import SpecError
from maas_ray.spec import Spec

PREFIX = "MAAS_"


class Settings(Spec):
    """Resolved settings; see the module's docstring for the variables."""

    home: str = "~/.maas"
    """Directory for this machine's state."""
    storage: str = ""
    """Fsspec URI or path under which datasets, checkpoints and bundles live."""
    mlflow: str = ""
    """MLflow tracking and registry URI."""
    database: str = ""
    """SQLAlchemy URL of the platform's database."""
    http_host: str = "127.0.0.1"
    """Address the gateway listens on; 0.0.0.0 opens it to the network."""
    http_port: int = Field(8000, ge=1, le=65535)
    """Port the gateway listens on."""
    shared: str = ""
    """YAML file with the options of the platform's shared replicas, one for all who deploy. Empty: the defaults."""
    grpc_port: int = Field(8001, ge=0, le=65535)
    """Port of the gateway's gRPC, at the same address; 0: none."""
    trust_remote_code: bool = False
    """Whether code that datasets and bundles bring may run."""
    verbose: bool = False
    """Whether to show Ray's own log lines, and tracebacks of errors."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: dict[str, str]) -> dict[str, str]:
        home = Path(values.get("home") or "~/.maas").expanduser().absolute()
        defaults = {
            "storage": str(home / "storage"),
            "mlflow": f"sqlite:///{home}/mlflow.db",
            "database": f"sqlite:///{home}/maas.db",
        }
        return {**values, "home": str(home)} | {k: v for k, v in defaults.items() if not values.get(k)}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read `MAAS_*` variables; an unknown one is an error, since it is a misspelt one."""
        environment = os.environ if environment is None else environment
        variables = {PREFIX + name.upper(): name for name in cls.model_fields}
        found = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
        problems = []
        for unknown in sorted(found.keys() - variables.keys()):
            near = difflib.get_close_matches(unknown, variables, n=1)
            fix = f"did you mean {near[0]}?" if near else f"there are: {', '.join(variables)}."
            problems.append(f"{unknown}: there is no such setting; {fix}")
        try:
            settings = cls.parse({variables[name]: value for name, value in found.items() if name in variables})
        except SpecError as error:
            # Each problem starts with the field's name; a person set a variable.
            parts = [problem.partition(":") for problem in error.problems]
            problems += [f"{PREFIX}{field.upper()}:{rest}" for field, _, rest in parts]
        if problems:
            raise SpecError("environment", problems)
        return settings

    def environment(self) -> dict[str, str]:
        """The variables that give another process the same settings."""
        return {PREFIX + name.upper(): str(value) for name, value in self.document().items()}


def exists(database: str) -> bool:
    """Whether there is a database to look at: looking must not make one. Another than SQLite's is taken to be there."""
    path = database.removeprefix("sqlite:///")
    return path == database or Path(path).exists()
