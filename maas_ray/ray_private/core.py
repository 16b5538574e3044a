"""Private names of Ray itself: how a process reads its environment, the session's dashboard, nodes that are leaving."""


def use_loopback(loopback: bool) -> None:
    """Make this process read Ray's environment variables again.

    Ray reads them when it is imported, and a cluster that is joined later may need others.

    Args:
        loopback: every address of the cluster is on loopback.
    """
    from ray._private import ray_constants
    from ray._raylet import Config  # type: ignore[attr-defined]

    ray_constants.ENABLE_RAY_CLUSTER &= not loopback
    Config.initialize("")


def dashboard_url() -> str:
    """URL of the dashboard of the cluster that this process is connected to. Empty: not known."""
    from ray._private import worker

    url = getattr(worker._global_node, "webui_url", None)
    return f"http://{url}" if url else ""


def machine_cpus() -> int:
    """CPUs of this machine, or of its container's quota."""
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus())


def draining_nodes() -> set[str]:
    """Ids of the nodes that Ray was told are about to leave. `ray.nodes()` does not say."""
    from ray._private import state

    return set(state.state.get_draining_nodes())
