"""Settings of the HAProxy that Ray Serve puts before its replicas; Serve reads them when a cluster starts.

`cluster.yaml` repeats these settings; a test demands that they are equal.
"""

import os
from pathlib import Path

from maas_ray.cluster.ports import free_ports

# HAProxy notices that a client has left only if the whole request arrived before a replica was chosen. This option
# makes it wait for the request, up to its buffer's size. Serve has no setting for it, so the line comes along with
# the balance algorithm, which stands before it in the file.
_BALANCE = "leastconn\n    option http-buffer-request"


def serve_environment(directory: Path) -> dict[str, str]:
    """The variables that make Serve use HAProxy, which answers several times as many requests as Serve's own proxy.

    Args:
        directory: for HAProxy's files, which would otherwise collide with another cluster's on the same machine. Keep
            its path short: Serve adds 57 characters to the paths of sockets, and HAProxy accepts 97.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ports = free_ports(3)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": _BALANCE,
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(64 * 1024),
        # When a gateway dies before it answers, HAProxy still holds the request and sends it to another gateway.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # A replica that leaves keeps listening for this long. HAProxy learns of it within one second.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[0]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[1]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[2]),
    }
