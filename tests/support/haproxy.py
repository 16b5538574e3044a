"""HAProxy alone, with the configuration that Ray Serve writes for a cluster of `maas up`."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from maas_ray.cluster import haproxy
from maas_ray.cluster.ports import answers, free_ports

# Serve reads its settings when it is imported, so its part runs in a process of its own.
_WRITE = """
import json, sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

port, servers, models = json.loads(sys.argv[1])
config = HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=port), has_received_routes=True, is_head=True)
replicas = [ServerConfig(f"replica-{server}", "127.0.0.1", server) for server in servers]
backends = {"gateway": BackendConfig(name="gateway", path_prefix="/", app_name="maas-gateway", servers=replicas)}
for prefix, server in models.items():
    name = f"http-model-{len(backends)}"
    own = [ServerConfig(name, "127.0.0.1", server)]
    backends[name] = BackendConfig(name=name, path_prefix=prefix, app_name=name, servers=own)
HAProxyApi(config, backends)._generate_config_file_internal()
"""


def write_configuration(
    directory: Path, servers: list[int], models: Mapping[str, int] = MappingProxyType({})
) -> tuple[Path, int]:
    """The file that Serve writes, and the port that HAProxy listens on.

    Args:
        directory: for HAProxy's files.
        servers: ports of the gateway's replicas.
        models: ports of replicas of other applications by their path prefix.
    """
    environment = haproxy.serve_environment(directory)
    (port,) = free_ports(1)
    command = [sys.executable, "-c", _WRITE, json.dumps([port, servers, dict(models)])]
    subprocess.run(command, check=True, env={**os.environ, **environment}, timeout=120)
    return Path(environment["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]), port


class HaProxy:
    """HAProxy's process, started by the program that Serve starts.

    `reload` replaces it as Serve does: the old one stops when its requests are answered.
    """

    def __init__(self, path: Path, port: int) -> None:
        self.path, self.port = path, port
        self.url = f"http://127.0.0.1:{port}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.reload()

    def reload(self) -> None:
        command = [str(self.path.parent / "haproxy"), "-db", "-f", str(self.path)]
        if self._processes:
            command += ["-x", str(self.path.parent / "a.sock"), "-sf", str(self._processes[-1].pid)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._processes.append(process)
        deadline = time.monotonic() + 10
        while not self._up(process):
            assert time.monotonic() < deadline, "HAProxy did not start"
            time.sleep(0.02)

    def _up(self, process: "subprocess.Popen[bytes]") -> bool:
        """True if this process owns the administration socket."""
        assert process.poll() is None, "HAProxy ended"
        if not answers(f"127.0.0.1:{self.port}"):
            return False
        try:
            with socket.socket(socket.AF_UNIX) as admin:
                admin.connect(str(self.path.parent / "a.sock"))
                admin.sendall(b"show info\n")
                return f"Pid: {process.pid}\n".encode() in admin.recv(65536)
        except OSError:
            return False

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@contextmanager
def running(path: Path, port: int) -> Iterator[HaProxy]:
    """HAProxy with this configuration."""
    proxy = HaProxy(path, port)
    try:
        yield proxy
    finally:
        proxy.close()
