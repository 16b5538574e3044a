"""The Ray cluster: joining the right one, starting one on this machine, ending exactly that one.

Knows nothing of what runs on a cluster.
"""

from maas_ray.cluster.code import check_code
from maas_ray.cluster.connection import connect, find
from maas_ray.cluster.environment import replica_runtime_env, worker_environment
from maas_ray.cluster.haproxy import serve_environment
from maas_ray.cluster.local import default_cpus, down, up
from maas_ray.cluster.ports import free_ports
from maas_ray.cluster.state import Cluster

__all__ = [
    "Cluster",
    "check_code",
    "connect",
    "default_cpus",
    "down",
    "find",
    "free_ports",
    "replica_runtime_env",
    "serve_environment",
    "up",
    "worker_environment",
]
