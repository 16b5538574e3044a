"""Private names of Ray Serve: its client, versions of code, queued requests, multiplexed models, request bodies."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

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

    Replicas of the same version stay and only get new options. Without a version, `serve.run` takes every submission
    for new code and restarts all replicas. Serve's config files set the field; its Python API cannot.
    """
    deployment = application._bound_deployment
    options = {**(deployment.ray_actor_options or {}), "runtime_env": runtime_env}
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
