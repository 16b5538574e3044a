"""The self-test of this room: are all private names of Ray still there? It reads Ray's sources, importing little.

Importing the modules would take several seconds, and `maas up` waits for this test.
"""

import ast
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple


class Use(NamedTuple):
    """One private name that this package relies on.

    Attributes:
        module: the module below `ray`.
        name: `function`, `function(parameter)`, `Class` or `Class.attribute`.
        breaks: what stops working without it, for a person.
    """

    module: str
    name: str
    breaks: str


_LOOPBACK = "joining a cluster on loopback"
_STATUS = "deploying, and reading the state of applications"
_BODIES = "request bodies that are too large cost no memory"
_HEADERS = "request ids, and that clients give no orders to Serve"
_RELAY = "requests that gateways pass on as bytes, several times as fast as over handles"
_MODELS = "requests reach the shared replica that has their model loaded"
_FINAL = "runs whose workers would fail again end at once, without restarts"
_ELASTIC = "elastic training: workers save before their number changes, and leave machines that are about to go"
_VLLM = "the vLLM engine"

USES = (
    Use("_private.ray_constants", "ENABLE_RAY_CLUSTER", _LOOPBACK),
    Use("_private.worker", "_global_node", "the dashboard's address"),
    Use("_private.node", "Node.webui_url", "the dashboard's address"),
    Use("_private.utils", "get_num_cpus", "the default number of CPUs of `maas up`"),
    Use("_private.state", "GlobalState.get_draining_nodes", _ELASTIC),
    Use("serve.context", "_get_global_client(raise_if_no_controller_running)", _STATUS),
    Use("serve.context", "_disconnect", "reconciling after Serve was restarted"),
    Use("serve._private.client", "ServeControllerClient.get_serve_details", _STATUS),
    Use("serve._private.client", "ServeControllerClient.http_config", "the gateway's address"),
    Use("serve._private.client", "ServeControllerClient.record_request_routing_info", _MODELS),
    Use("serve._private.common", "RequestRoutingInfo.multiplexed_model_ids", _MODELS),
    Use("serve._private.direct_ingress_http_util", "ASGIDIReceiveProxy.__call__", _BODIES),
    Use("serve._private.direct_ingress_http_util", "ASGIDIReceiveProxy.__init__", _BODIES),
    Use("serve.deployment", "Application._bound_deployment", "updates that keep running replicas"),
    Use("serve.deployment", "Deployment._version", "updates that keep running replicas"),
    Use("serve.handle", "_DeploymentResponseBase._replica_result_future", "requests that wait move to a new version"),
    Use("serve.handle", "_DeploymentHandleBase._router", _RELAY),
    Use("serve._private.router", "SingletonThreadRouter._asyncio_router", _RELAY),
    Use("serve._private.router", "AsyncioRouter.request_router", _RELAY),
    Use("serve._private.request_router.request_router", "RequestRouter.curr_replicas", _RELAY),
    Use("serve._private.request_router.replica_wrapper", "RunningReplica.backend_http_endpoint", _RELAY),
    Use("serve._private.request_router.replica_wrapper", "RunningReplica.replica_metadata", _RELAY),
    Use("serve.api", "delete(_blocking)", "deleting the old version while it finishes its requests"),
    Use("serve._private.constants", "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM", "cancelling requests whose client left"),
    Use("serve._private.haproxy", "HAProxyConfig.balance_algorithm", "cancelling requests whose client left"),
    Use("serve._private.constants", "RAY_SERVE_HAPROXY_HEALTH_CHECK_FASTINTER", _HEADERS),
    Use("serve._private.haproxy", "BackendConfig.build_health_check_config", _HEADERS),
    Use("train.v2._internal.callbacks", "DatasetsCallback", "a process less for each start of training workers"),
    Use("train.v2._internal.exceptions", "WorkerHealthCheckFailedError", "the reason why workers are restarted"),
    Use("train.v2._internal.execution.callback", "ControllerCallback", _ELASTIC),
    Use("train.v2._internal.execution.callback", "ReportCallback", _ELASTIC),
    Use("train.v2._internal.execution.controller.state", "RestartingState", _ELASTIC),
    Use("train.v2._internal.execution.controller.state", "ReschedulingState", _ELASTIC),
    Use("train.v2._internal.execution.controller.state", "ResizingState", _ELASTIC),
    Use("train.v2._internal.execution.controller.state", "RunningState", _ELASTIC),
    Use("train.v2._internal.execution.failure_handling.default", "DefaultFailurePolicy.make_decision", _FINAL),
    Use("train.v2._internal.execution.failure_handling.failure_policy", "FailureDecision.RAISE", _FINAL),
    Use("train.v2._internal.execution.scaling_policy", "NoopDecision", _ELASTIC),
    Use("train.v2._internal.execution.scaling_policy", "ResizeDecision", _ELASTIC),
    Use(
        "train.v2._internal.execution.scaling_policy.elastic",
        "ElasticScalingPolicy.make_decision_for_running_worker_group",
        _ELASTIC,
    ),
    Use(
        "train.v2._internal.execution.scaling_policy.elastic",
        "ElasticScalingPolicy._count_possible_workers",
        _ELASTIC,
    ),
    Use("train.v2._internal.execution.worker_group.poll", "_is_preempted_actor", _ELASTIC),
    Use("train.v2.api.data_parallel_trainer", "DataParallelTrainer._initialize_and_run_controller", "elastic training"),
    Use("data._internal.datasource.range_datasource", "RangeDatasource", "feeding batches to training workers"),
    Use("llm._internal.serve.engines.vllm.vllm_engine", "VLLMEngine._engine_client", _VLLM),
)


def problems(uses: tuple[Use, ...] = USES) -> list[str]:
    """One line for each private name that the installed Ray no longer has. Empty: all are there."""
    import ray
    from ray import _raylet

    root = Path(ray.__file__).parent
    lines = [_line(f"{use.module}.{use.name}", use.breaks) for use in uses if not _exists(root, use)]
    if not callable(getattr(getattr(_raylet, "Config", None), "initialize", None)):  # compiled: it has no source
        lines.append(_line("_raylet.Config.initialize", _LOOPBACK))
    return lines


def advice() -> str:
    """The remedy for `problems`, in words."""
    import ray

    tested = [text for text in _requirements() if text.startswith("ray")]
    wanted = f" (`pip install '{tested[0].partition(';')[0].strip()}'`)" if tested else ""
    return f"Ray {ray.__version__} is installed. Install the Ray that this version of maas_ray was tested with{wanted}."


def _line(name: str, breaks: str) -> str:
    return f"ray.{name} does not exist. Without it these fail: {breaks}."


def _requirements() -> list[str]:
    try:
        return metadata.requires("maas_ray") or []
    except metadata.PackageNotFoundError:
        return []


def _exists(root: Path, use: Use) -> bool:
    path = root.joinpath(*use.module.split("."))
    source = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    if not source.is_file():
        return False
    name, _, parameter = use.name.rstrip(")").partition("(")
    outer, _, attribute = name.partition(".")
    found = _defined(_tree(source)).get(outer)
    if parameter:
        return isinstance(found, ast.FunctionDef) and parameter in [a.arg for a in found.args.args]
    if attribute:
        return isinstance(found, ast.ClassDef) and (attribute in _defined(found) or attribute in _set_on_self(found))
    return found is not None


@cache
def _tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))


def _defined(scope: ast.Module | ast.ClassDef) -> dict[str, ast.AST]:
    """Names that a module or class defines, imports or annotates, also inside `if` and `try`."""
    names: dict[str, ast.AST] = {}
    pending: list[ast.stmt] = list(scope.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign):
            names |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.If | ast.Try):
            pending += [*node.body, *node.orelse]
    return names


def _set_on_self(scope: ast.ClassDef) -> set[str]:
    return {
        node.attr
        for node in ast.walk(scope)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
    }
