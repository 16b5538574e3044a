"""Helpers of tests that deploy. Serve keeps running between modules, because ending it takes half a minute."""

from maas_ray import endpoints, undeploy
from maas_ray.settings import Settings


def undeploy_all(settings: Settings) -> None:
    """Take every endpoint down, and the shared replicas, which have options of their own."""
    from maas_ray.serve.deployment import serve_control as control
    from maas_ray.serve.spec import SHARED_APP

    for endpoint in endpoints(settings=settings):
        undeploy(endpoint.name, settings=settings)
    control.delete([SHARED_APP])
