"""The gateway: one Serve application before all models. Stateless; its routing table is `user_config`.

It imports no torch and opens no bundle, and a new table restarts nothing. Serve takes the type of `build`'s
argument from its annotation, so this module must not turn annotations into strings.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from maas_ray.serve.api import create_app
from maas_ray.serve.guard import BACKPRESSURE, App
from maas_ray.serve.models import Models
from maas_ray.serve.routes import Table, from_config, resolve_route, to_config
from maas_ray.serve.spec import GATEWAY_DEPLOYMENT, GatewayArgs

_BUSY = 1000  # requests at once in one gateway: far more than models take, so that they say who must wait


@serve.ingress()
class Gateway:
    """A gateway replica."""

    def __init__(self, body_limit: int) -> None:
        self._models = Models()
        self._body_limit = body_limit

    def __serve_build_asgi_app__(self) -> App:
        return create_app(self._models, body_limit=self._body_limit)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Take a new routing table."""
        await self._models.update(from_config(config))


def application(args: GatewayArgs, table: Table) -> Application:
    """The gateway with a routing table."""
    deployment = serve.deployment(
        name=GATEWAY_DEPLOYMENT,
        # It waits for models, as Serve's own proxies do, and like them reserves no CPU.
        ray_actor_options={"num_cpus": 0},
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": 64,
        },
        max_ongoing_requests=_BUSY,
        max_queued_requests=_BUSY,
        backpressure_config=BACKPRESSURE,
        max_surge_percent=100,
        user_config=to_config(table),
    )(Gateway)
    return deployment.bind(int(args.body_limit_mb * 1e6))


def build(args: GatewayArgs) -> Application:
    """The gateway, for a Serve config file: versions are resolved now."""
    from maas_ray.settings import Settings

    settings = Settings.from_environment()
    return application(args, tuple(resolve_route(model, settings) for model in args.models))
