"""Private names of Ray Serve: its client, versions of code, requests, replicas that answer HTTP, request bodies."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

_READ_AHEAD_BYTES = 1_000_000
_READ_AHEAD_WAIT_S = 0.002  # at most 500 MB/s for each request


def client() -> Any:
    """The client of Serve's controller. None: Serve does not run.

    `serve.status()` leaves out replicas, options and ports, which the client's `get_serve_details()` and
    `http_config` have.
    """
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


def forget_client() -> None:
    """Make this process look up Serve's controller again.

    Serve caches the controller for as long as the process lives, and does not notice that another process has shut
    Serve down and started it again.
    """
    from ray.serve.context import _disconnect

    _disconnect()


def finish(application: Any, *, version: str, runtime_env: dict[str, Any]) -> None:
    """Set the version of an application's code, and its runtime environment, before it is submitted.

    Variables that the deployment has set itself stay. Replicas of the same version stay and only get new options.
    Without a version, `serve.run` takes every submission for new code and restarts all replicas. Serve's config files
    set the field; its Python API cannot.
    """
    deployment = application._bound_deployment
    options = dict(deployment.ray_actor_options or {})
    own = (options.get("runtime_env") or {}).get("env_vars") or {}
    options["runtime_env"] = {**runtime_env, "env_vars": {**(runtime_env.get("env_vars") or {}), **own}}
    application._bound_deployment = deployment.options(ray_actor_options=options)
    application._bound_deployment._version = version


def delete_in_background(name: str) -> None:
    """Ask Serve to delete an application, and return before it is gone."""
    from ray import serve

    serve.delete(name, _blocking=False)


def cancel_if_queued(response: Any) -> bool:
    """Cancel a request that no replica has accepted yet. False: a replica works on it, or has answered.

    `response.cancel()` would also end one that a replica works on.
    """
    return bool(response._replica_result_future.cancel())


class HttpReplica(NamedTuple):
    """A replica that answers HTTP itself.

    Attributes:
        host, port: its own server.
        metadata: as its `record_replica_metadata` returned it. Serve passes it to the routers of handles only.
    """

    host: str
    port: int
    metadata: Mapping[str, Any]


class HttpReplicas:
    """The running replicas of an application that answer HTTP, as the router of its handle knows them.

    Serve gives the ingress of each application a port of its own if HAProxy is on, and tells it to routers along with
    the replica; there is no public way to ask for it.

    Args:
        handle: of the application. Its router has been started.
    """

    def __init__(self, handle: Any) -> None:
        self._router = handle._router._asyncio_router
        self._known: Mapping[Any, Any] | None = None
        self._count = 0
        self._found: dict[str, HttpReplica] = {}

    def now(self) -> dict[str, HttpReplica]:
        """The replicas by id: the same dictionary for as long as they are the same."""
        router = self._router.request_router
        known: Mapping[Any, Any] = router.curr_replicas if router else {}
        # The router replaces the mapping when replicas change, and takes single ones out when it sees them dead.
        if known is not self._known or len(known) != self._count:
            replicas = list(known.values())
            self._known, self._count = known, len(replicas)
            self._found = {}
            for replica in replicas:
                if replica.backend_http_endpoint:
                    host, port = replica.backend_http_endpoint
                    self._found[replica.replica_id.unique_id] = HttpReplica(host, port, replica.replica_metadata)
        return self._found


def report_models(keys: Sequence[str]) -> None:
    """Tell Serve which multiplexed models this replica has loaded, so that requests for them are routed here.

    Only `@serve.multiplexed` does this publicly, together with a cache of its own.
    """
    from ray import serve
    from ray.serve._private.common import RequestRoutingInfo
    from ray.serve.context import _get_global_client

    replica = serve.get_replica_context().replica_id
    _get_global_client().record_request_routing_info(RequestRoutingInfo(replica, list(keys)))


def bound_read_ahead() -> None:
    """Let the HTTP server of this replica read at most a megabyte of a request before the application has taken it.

    Serve reads a request to its end in one thread, and queues what the application, in another thread, has not taken
    yet. An application that is kept busy for a second would hold a gigabyte that it is about to refuse. While nothing
    is read, Uvicorn stops reading from the connection, and the client waits. Repeated calls change nothing.
    """
    from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy as Proxy

    if hasattr(Proxy, "read_ahead"):
        return
    start, take = Proxy.__init__, Proxy.__call__

    def init(self: Any, scope: Any, receive: Callable[[], Awaitable[Any]], loop: asyncio.AbstractEventLoop) -> None:
        self.received, self.taken = 0, 0  # each is written by one thread only

        async def paced() -> Any:
            while self.received - self.taken > Proxy.read_ahead:
                await asyncio.sleep(_READ_AHEAD_WAIT_S)
            message = await receive()
            self.received += len(message.get("body", b""))
            return message

        start(self, scope, paced, loop)

    async def call(self: Any) -> Any:
        message = await take(self)
        self.taken += len(message.get("body", b""))
        return message

    Proxy.__init__, Proxy.__call__, Proxy.read_ahead = init, call, _READ_AHEAD_BYTES
