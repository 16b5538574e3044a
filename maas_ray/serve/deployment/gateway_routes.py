"""The gateway and its routing table, which is always written from the database."""

from maas_ray.errors import DeploymentError
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.desired import code_version
from maas_ray.serve.deployment.endpoints import Endpoints
from maas_ray.serve.spec import GATEWAY_APP, GatewayArgs
from maas_ray.settings import Settings
from maas_ray.terminal.lines import progress, say


def apply_gateway(endpoints: Endpoints, settings: Settings) -> None:
    """Give the gateway the recorded routing table. Start the gateway if it does not run.

    Raises:
        DeploymentError: it did not come up.
    """
    from maas_ray.serve import gateway

    args = GatewayArgs(grpc_host=control.host(), grpc_port=settings.grpc_port)
    with endpoints.exclusive() as table:
        application = gateway.application(args, table)
        control.submit(application, GATEWAY_APP, version=code_version(), route_prefix="/")
    with progress("gateway: replicas ready") as bar:
        control.wait(
            GATEWAY_APP,
            placement_timeout_s=60,
            startup_timeout_s=120,
            report=lambda now: bar.update(now.running, now.note, total=now.wanted),
        )
    if args.grpc_port and (problem := control.ask(GATEWAY_APP, "grpc_problem")):
        say(problem)


def check_gateway() -> None:
    """Check that this cluster's gateway takes its routes from the database.

    Raises:
        DeploymentError: a Serve config file says which routes it has.
    """
    running = control.applications().get(GATEWAY_APP)
    if running and running["source"] == "declarative":
        raise DeploymentError(
            "this cluster's gateway was deployed from a Serve config file (`serve deploy`), and only that file can "
            "change its routes. Add the endpoint to the file; or end Serve (`serve shutdown`) and use `maas deploy`.",
            code="gateway_from_config_file",
        )
