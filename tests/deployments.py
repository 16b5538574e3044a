"""What tests that deploy share. Serve itself runs on from module to module: to end it takes half a minute."""

from maas_ray import endpoints, undeploy
from maas_ray.settings import Settings


def undeploy_all(settings: Settings) -> None:
    """Take every endpoint down."""
    for endpoint in endpoints(settings=settings):
        undeploy(endpoint.name, settings=settings)
