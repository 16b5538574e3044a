"""The gateway: one stateless Serve application in front of all models. Its routing table is its `user_config`.

It neither imports Torch nor opens bundles, and a new table restarts nothing. Serve reads the type of `build`'s
argument from its annotation, so this module must not turn annotations into strings.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from maas_ray.ray_private.serve import bound_read_ahead
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.middleware import App
from maas_ray.serve.api.open_inference.grpc_server import GrpcServer
from maas_ray.serve.api.open_inference.shared_port import Address
from maas_ray.serve.api.refusals import BACKPRESSURE
from maas_ray.serve.calls import Models
from maas_ray.serve.resolve import resolve_route
from maas_ray.serve.routes import Table, from_config, to_config
from maas_ray.serve.spec import GATEWAY_DEPLOYMENT, GatewayArgs

_DRAINING_SECONDS = 40.0  # time to stop a replica, in addition to its requests
_MAX_CALLS = 1000  # concurrent requests in one gateway: far more than models accept, so that models refuse, not it


@serve.ingress()
class Gateway:
    """A gateway replica."""

    def __init__(self, body_limit: int) -> None:
        self._models = Models()
        self._body_limit = body_limit
        here = ray.get_runtime_context().get_node_id()
        self._grpc = GrpcServer(self._models, owner=here, message_limit=body_limit, max_calls=_MAX_CALLS)

    def __serve_build_asgi_app__(self) -> App:
        bound_read_ahead()
        return create_app(self._models, body_limit=self._body_limit)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Apply a new routing table, and the address for gRPC."""
        await self._models.update(from_config(config))
        await self._grpc.listen(Address(**config["grpc"]) if config.get("grpc") else None)

    def grpc_problem(self) -> str:
        """The reason why gRPC is not available, for a person. Empty: it is, or was not requested."""
        return self._grpc.problem

    async def __del__(self) -> None:
        # Serve awaits this when a replica stops, once its HTTP requests are finished; it does not know of gRPC calls.
        await self._grpc.close()


def application(args: GatewayArgs, table: Table, platform: Mapping[str, Any] = MappingProxyType({})) -> Application:
    """The gateway with a routing table. Without gRPC, if `args.grpc_port` is 0 or None.

    Args:
        args: its options.
        table: its routes.
        platform: said in its `user_config` about the platform that it belongs to.
    """
    grpc = {"host": args.grpc_host, "port": args.grpc_port} if args.grpc_port else None
    deployment = serve.deployment(
        name=GATEWAY_DEPLOYMENT,
        # It mostly waits for models, like Serve's own proxies, and like them reserves no CPU.
        ray_actor_options={"num_cpus": 0},
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": 64,
        },
        max_ongoing_requests=_MAX_CALLS,
        max_queued_requests=_MAX_CALLS,
        backpressure_config=BACKPRESSURE,
        max_surge_percent=100,
        # A replica that stops finishes all its requests, however long they take: first HTTP, then gRPC.
        graceful_shutdown_timeout_s=_DRAINING_SECONDS + 2 * max((route.timeout_s for route in table), default=0),
        user_config=to_config(table) | {"grpc": grpc} | dict(platform),
    )(Gateway)
    return deployment.bind(int(args.body_limit_mb * 1e6))


def build(args: GatewayArgs) -> Application:
    """The gateway, for a Serve config file: versions are resolved now."""
    from maas_ray.settings import Settings

    settings = Settings.from_environment()
    host = settings.http_host if args.grpc_host is None else args.grpc_host
    port = settings.grpc_port if args.grpc_port is None else args.grpc_port
    args = args.model_copy(update={"grpc_host": host, "grpc_port": port})
    return application(args, tuple(resolve_route(model, settings) for model in args.models))
