"""The gateway's routing table: public model names and the applications behind them, as they travel in `user_config`.

A route is written when a version is deployed (`resolve`). The gateway itself opens no bundle.
"""

import random
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from maas_ray.serve.caller import Caller
from maas_ray.spec import Spec, digest_of


class Tensor(Spec):
    """A tensor of a request or an answer, as the Open Inference Protocol describes it."""

    name: str
    """Its name."""
    datatype: str
    """Its type, such as `FP32`."""
    shape: tuple[int, ...]
    """Its sizes. -1 is any size. The first is the batch's."""


class AdapterRoute(Spec):
    """A LoRA adapter of a route's model."""

    name: str
    """Its name; public is `MODEL:NAME`."""
    version: str
    """The registered version, `name/number`."""
    uri: str
    """The adapter's bundle."""
    digest: str
    """The bundle's digest."""
    created: int
    """When the version was registered, Unix seconds."""


class Target(Spec):
    """One application that can answer a route's requests."""

    application: str
    """Its Serve application."""
    version: str
    """The registered version that it serves, `name/number`."""
    shared: str = ""
    """The id of the `SharedModel` that a shared replica loads to answer. Empty: its application serves nothing else."""
    weight: float = Field(1.0, ge=0)
    """Its share of the requests, relative to the other targets of the same mode."""
    mode: Literal["serve", "shadow"] = "serve"
    """serve: its answers go to clients. shadow: it gets copies of requests, and its answers are dropped."""


class Route(Spec):
    """One public model name and the applications behind it."""

    name: str
    """Public model name."""
    targets: tuple[Target, ...] = Field(min_length=1)
    """Applications that can answer; the first one serves, and the other fields of the route describe it."""
    kind: str
    """`generate` or `predict`, see `maas_ray.tasks.Task`."""
    task: str
    """The task's type."""
    version: str
    """The registered version, `name/number`."""
    digest: str
    """The bundle's digest."""
    created: int
    """When the version was registered, Unix seconds."""
    inputs: tuple[Tensor, ...]
    """Tensors of a request."""
    outputs: tuple[Tensor, ...]
    """Tensors of an answer."""
    timeout_s: float
    """Timeout of one request, seconds."""
    engine: str = ""
    """Engine that computes, as a replica reported when the version was deployed. Empty: not known."""
    adapters: tuple[AdapterRoute, ...] = ()
    """LoRA adapters that are served with it."""
    adapter: AdapterRoute | None = None
    """The adapter of this route, see `expanded`. None: the model itself."""
    is_pinned: bool = Field(False, exclude=True)
    """A request asked for this version, see `pinned`. Tables have no such routes."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_application(cls, data: Any) -> Any:
        """Read a route as it was stored when it led to exactly one application."""
        if not isinstance(data, dict) or "targets" in data or "application" not in data:
            return data
        data = dict(data)
        target = {
            "application": data.pop("application"),
            "version": data.get("version"),
            "shared": data.pop("shared", ""),
        }
        return data | {"targets": (target,)}

    @property
    def target(self) -> Target:
        """The target that the route describes."""
        return self.targets[0]

    @property
    def applications(self) -> set[str]:
        """The Serve applications that the route needs."""
        return {target.application for target in self.targets}

    def with_target(self, **changes: Any) -> "Route":
        """The same route with changes to `target`."""
        return self.model_copy(update={"targets": (self.target.model_copy(update=changes), *self.targets[1:])})

    def pinned(self) -> "Route":
        """The route for a request that asked for this version, so that no other may answer."""
        targets = tuple(target for target in self.targets if target.version == self.target.version)
        return self.model_copy(update={"targets": targets, "is_pinned": True})

    @property
    def number(self) -> str:
        """The version's number, which the Open Inference Protocol calls the version."""
        return self.version.rpartition("/")[2]

    def metadata(self) -> dict[str, Any]:
        """The model's metadata by the Open Inference Protocol."""
        return {
            "name": self.name,
            "versions": [self.number],
            "platform": f"maas_ray_{self.task}",
            **self.model_dump(mode="json", include={"inputs", "outputs"}),
        }

    @property
    def parent(self) -> str | None:
        """The name of the model that an adapter's route adds to. None: it is not an adapter's route."""
        return self.name.rpartition(":")[0] if self.adapter else None

    def expanded(self) -> "Iterator[Route]":
        """The route itself, and a route for each of its adapters."""
        yield self
        for adapter in self.adapters:
            yield self.model_copy(
                update={
                    "name": f"{self.name}:{adapter.name}",
                    "version": adapter.version,
                    "digest": digest_of([self.digest, adapter.digest]),
                    "created": adapter.created,
                    "adapters": (),
                    "adapter": adapter,
                }
            )


Table = tuple[Route, ...]
_TABLE = TypeAdapter(Table)


def direct_path(endpoint: str) -> str:
    """The prefix of the paths that name a model."""
    return f"/v2/models/{endpoint}"


def to_config(table: Table) -> dict[str, Any]:
    """A routing table as the gateway's `user_config`. Equal tables give equal documents."""
    return {"routes": _TABLE.dump_python(tuple(sorted(table, key=lambda route: route.name)), mode="json")}


def from_config(config: dict[str, Any]) -> Table:
    """The routing table in a `user_config`. Fields that a newer version of the package added are ignored."""
    return _TABLE.validate_python(config["routes"], extra="ignore")


def pick(route: Route, caller: Caller) -> Target:
    """Choose the target that answers one request, by weight among those that serve.

    Args:
        route: the route of the request's model.
        caller: who asks. Every caller gets the same choice today.
    """
    serving = [target for target in route.targets if target.mode == "serve" and target.weight]
    return serving[0] if len(serving) == 1 else random.choices(serving, [target.weight for target in serving])[0]  # noqa: S311
