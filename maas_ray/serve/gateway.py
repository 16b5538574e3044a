"""The gateway: one stateless Serve application in front of all models. Its routing table is its `user_config`.

It neither imports Torch nor opens bundles, and a new table restarts nothing. Serve reads the type of `build`'s
argument from its annotation, so this module must not turn annotations into strings.
"""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from maas_ray.cluster.haproxy import HARD_STOP
from maas_ray.ray_private.serve import bound_read_ahead
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.incoming import body_budget
from maas_ray.serve.api.middleware import App
from maas_ray.serve.api.open_inference.grpc_server import GrpcServer
from maas_ray.serve.api.open_inference.shared_port import Address
from maas_ray.serve.api.refusals import BACKPRESSURE
from maas_ray.serve.api.relay import Relay
from maas_ray.serve.caller import ANONYMOUS
from maas_ray.serve.calls import Models
from maas_ray.serve.resolve import resolve_route
from maas_ray.serve.routes import Table, from_config, to_config
from maas_ray.serve.spec import GATEWAY_DEPLOYMENT, GatewayArgs

_DRAINING_SECONDS = 40.0  # time to stop a replica, in addition to its requests
_SERVES_HARD_STOP = "120"  # Serve's default
_MAX_CALLS = 1000  # concurrent requests in one gateway: far more than models accept, so that models refuse, not it


@serve.ingress()
class Gateway:
    """A gateway replica.

    Args:
        options: of `create_app`.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._models = Models()
        self._relay = Relay(self._models.asked, self._models.replica)
        self._options = options
        here = ray.get_runtime_context().get_node_id()
        limit = options["body_limit"]
        self._budget = body_budget(options["budget"], limit)
        self._grpc = GrpcServer(
            self._models, owner=here, message_limit=limit, max_calls=_MAX_CALLS, budget=self._budget
        )

    def __serve_build_asgi_app__(self) -> App:
        bound_read_ahead()
        return create_app(self._models, **self._options | {"budget": self._budget}, relay=self._relay)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Apply a new routing table, and the address for gRPC."""
        await self._models.update(from_config(config))
        await self._grpc.listen(Address(**config["grpc"]) if config.get("grpc") else None)

    def problems(self) -> list[str]:
        """Whatever keeps this gateway from serving as it should, for a person; one line each."""
        longest = max((route.timeout_s for route in self._models.routes(caller=ANONYMOUS)), default=0)
        return [problem for problem in (self._grpc.problem, _cut_answers(longest, os.environ)) if problem]

    async def __del__(self) -> None:
        # Serve awaits this when a replica stops, once its HTTP requests are finished; it does not know of gRPC calls.
        await self._grpc.close()
        await self._relay.close()


def _cut_answers(longest: float, environment: Mapping[str, str]) -> str:
    """The problem that HAProxy cuts answers which are allowed to take longer. Empty: it does not."""
    limit = float(environment.get(HARD_STOP, _SERVES_HARD_STOP))
    if environment.get("RAY_SERVE_ENABLE_HA_PROXY") != "1" or longest < limit:
        return ""
    return (
        f"Whenever replicas come or go, HAProxy cuts answers that are older than {limit:g} s, but request_timeout_s of "
        f"a model is {longest:g}. Set {HARD_STOP} to {longest + 60:.0f} or more where the nodes of the cluster start."
    )


def application(args: GatewayArgs, table: Table, notes: Mapping[str, Any] = MappingProxyType({})) -> Application:
    """The gateway with a routing table. Without gRPC, if `args.grpc_port` is 0 or None.

    Args:
        args: its options.
        table: its routes.
        notes: further entries of its `user_config`, for deployers to read.
    """
    grpc = {"host": args.grpc_host, "port": args.grpc_port} if args.grpc_port else None
    deployment = serve.deployment(
        name=GATEWAY_DEPLOYMENT,
        # It mostly waits for models, like Serve's own proxies, and like them reserves no CPU.
        ray_actor_options={"num_cpus": 0},
        autoscaling_config={
            "min_replicas": args.min_replicas or 1,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": 64,
        },
        max_ongoing_requests=_MAX_CALLS,
        max_queued_requests=_MAX_CALLS,
        backpressure_config=BACKPRESSURE,
        max_surge_percent=100,
        # A replica that stops finishes all its requests, however long they take: first HTTP, then gRPC.
        graceful_shutdown_timeout_s=_DRAINING_SECONDS + 2 * max((route.timeout_s for route in table), default=0),
        user_config=to_config(table) | {"grpc": grpc} | dict(notes),
    )(Gateway)
    return deployment.bind(args.http_options())


def alive_nodes() -> int:
    """Number of nodes of the connected cluster."""
    return sum(node["Alive"] for node in ray.nodes())


def build(args: GatewayArgs) -> Application:
    """The gateway, for a Serve config file: versions are resolved now."""
    from maas_ray.settings import Settings

    settings = Settings.from_environment(strict=False)
    host = settings.http_host if args.grpc_host is None else args.grpc_host
    port = settings.grpc_port if args.grpc_port is None else args.grpc_port
    args = args.for_nodes(alive_nodes()).model_copy(update={"grpc_host": host, "grpc_port": port})
    return application(args, tuple(resolve_route(model, settings) for model in args.models))
