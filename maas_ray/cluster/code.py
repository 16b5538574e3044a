"""The code of maas_ray on the cluster's nodes, which must be the code of the process that deploys.

Names of applications contain a digest of it, so another one would replace the gateway and every replica, by the code
that the nodes have and not by the one that the name says.
"""

from collections.abc import Callable
from functools import cache

from maas_ray.errors import ClusterError
from maas_ray.version import __version__, compute_code_version

_SECONDS = 60.0
QUESTION = "from maas_ray import version; print(version.__version__, version.compute_code_version())"


def check_code() -> None:
    """Check that a node of the connected cluster has the code of this process.

    Raises:
        ClusterError: it has another version, or none; or it does not answer.
    """
    import ray

    _check(ray.get_runtime_context().gcs_address)


@cache
def _check(_: str) -> None:
    import ray
    from ray.exceptions import RayError

    try:
        installed = ray.get(ray.remote(num_cpus=0)(node_question()).remote(QUESTION), timeout=_SECONDS)
    except RayError as error:
        raise ClusterError(f"no node says which code it has: {error}", code="code_unknown") from error
    compare(installed, f"{__version__} {compute_code_version()}")


def compare(installed: str, here: str) -> None:
    """Check that two versions, each with the digest of its code, are the same.

    Raises:
        ClusterError: they differ.
    """
    if installed != here:
        raise ClusterError(
            f"the cluster's nodes have {f'maas_ray {installed}' if installed else 'no maas_ray of this generation'}, "
            f"and this process has maas_ray {here}. Replicas run the code of the nodes, so install the same there, or "
            "deploy with their version.",
            code="cluster_of_other_code",
        )


def node_question() -> Callable[[str], str]:
    """A function that runs Python code on a node with the imports of replicas: not those of a job's directory.

    It is a closure, so it travels by value and needs no maas_ray where it arrives.
    """

    def ask(code: str) -> str:
        import os
        import subprocess
        import sys

        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        node_paths = os.pathsep.join(path for path in paths if "/working_dir_files/" not in path)
        command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": node_paths}
        answer = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
        return answer.stdout.strip()

    return ask
