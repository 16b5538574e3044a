"""The gateway and its routing table, which is always written from the database."""

import ipaddress

from maas_ray.database.platform import Platform
from maas_ray.errors import DeploymentError, SpecError
from maas_ray.serve.deployment import ownership
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.desired import code_version
from maas_ray.serve.deployment.endpoints import Endpoints
from maas_ray.serve.spec import GATEWAY_APP, GatewayArgs
from maas_ray.settings import Settings
from maas_ray.spec import digest_of
from maas_ray.terminal.lines import progress, say


def gateway_args(settings: Settings) -> GatewayArgs:
    """Options of the gateway.

    Raises:
        SpecError: the file that MAAS_GATEWAY names is wrong, or has an option that is not set there.
    """
    source = settings.gateway
    if not source:
        return GatewayArgs()
    inline = source.startswith("{")
    args = GatewayArgs.from_text(source, source="MAAS_GATEWAY") if inline else GatewayArgs.from_yaml(source)
    elsewhere = {
        "models": "is set by `maas deploy`",
        "grpc_host": "is MAAS_HTTP_HOST",
        "grpc_port": "is MAAS_GRPC_PORT",
    }
    problems = [f"{name}: {why}; remove it." for name, why in elsewhere.items() if name in args.model_fields_set]
    if problems:
        raise SpecError("MAAS_GATEWAY" if inline else source, problems, code="gateway_option_elsewhere")
    return args


def _version(args: GatewayArgs) -> str:
    """Version of the gateway's replicas: other code and other limits replace them, another number does not."""
    limits = {name: value for name, value in args.own_options().items() if name not in ("min_replicas", "max_replicas")}
    return digest_of({"code": code_version(), "limits": limits})[:12]


def apply_gateway(endpoints: Endpoints, settings: Settings) -> None:
    """Give the gateway the recorded routing table. Start the gateway if it does not run.

    Raises:
        DeploymentError: it did not come up, or belongs to another platform.
    """
    from maas_ray.serve import gateway

    check_gateway(endpoints)
    options = gateway_args(settings)
    args = options.for_nodes(gateway.alive_nodes())
    args = args.model_copy(update={"grpc_host": control.host(), "grpc_port": settings.grpc_port})
    platform = endpoints.platform
    with endpoints.exclusive() as table:
        application = gateway.application(
            args, table, ownership.to_config(platform) | {"options": options.own_options()}
        )
        version = _version(options)
        control.submit(application, GATEWAY_APP, version=version, route_prefix="/", user_code=False)
    with progress("gateway: replicas ready") as bar:
        control.wait(
            GATEWAY_APP,
            placement_timeout_s=60,
            startup_timeout_s=120,
            report=lambda now: bar.update(now.running, now.note, total=now.wanted),
        )
    now = ownership.of_gateway(control.applications())
    if now is not None and now.id != platform.id:  # both found the cluster free
        raise _taken(f"platform {now}", platform)
    for problem in control.ask(GATEWAY_APP, "problems"):
        say(problem)
    if not _is_loopback(control.host()):
        say(
            f"Requests are not authenticated, and the gateway listens at {control.host()}. Put a proxy with "
            "authentication before it, and its ports behind a firewall; or set MAAS_HTTP_HOST=127.0.0.1."
        )


def claim_gateway(endpoints: Endpoints, settings: Settings) -> None:
    """Make a gateway of version 0.2.0 say whose it is.

    It must happen before a route moves. Afterwards the database would not know where that gateway's routes lead, and
    they would seem to be another platform's.

    Raises:
        DeploymentError: the gateway did not come up, or belongs to another platform.
    """
    running = control.applications()
    if ownership.gateway_config(running).get("routes") and ownership.of_gateway(running) is None:
        apply_gateway(endpoints, settings)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_gateway(endpoints: Endpoints | None) -> None:
    """Check that this cluster's gateway takes its routes from this platform's database.

    Args:
        endpoints: the platform's table of endpoints. None: it has no database yet.

    Raises:
        DeploymentError: a Serve config file says which routes the gateway has, or it is another platform's.
    """
    applications = control.applications()
    running = applications.get(GATEWAY_APP)
    if running and running["source"] == "declarative":
        raise DeploymentError(
            "this cluster's gateway was deployed from a Serve config file (`serve deploy`), and only that file can "
            "change its routes. Add the endpoint to the file; or end Serve (`serve shutdown`) and use `maas deploy`.",
            code="gateway_from_config_file",
        )
    platform, records = (endpoints.platform, endpoints.all()) if endpoints else (None, [])
    if other := ownership.other_platform(platform, records, applications):
        raise _taken(other, platform)


def _taken(other: str, platform: Platform | None) -> DeploymentError:
    return DeploymentError(
        f"this Ray cluster serves {other}. This is {f'platform {platform}' if platform else 'a new platform'}, and a "
        "cluster serves one platform. Set MAAS_DATABASE to the other's database to share its endpoints, or use another "
        "Ray cluster (RAY_ADDRESS). If the other platform is gone, `serve shutdown` ends what is left of it.",
        code="cluster_of_another_platform",
    )
