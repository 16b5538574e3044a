"""Logs of endpoints, training runs, submitted jobs and the cluster, from all nodes, by Ray's state API.

Ray keeps one directory of logs on each node. The names of the files say whose they are, except for Ray Train: its
JSON logs name the run and the worker, and the worker's own files have the output.
"""

import json
import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from maas_ray import cluster as clusters
from maas_ray.errors import ClusterError, NotFoundError
from maas_ray.settings import Settings, exists
from maas_ray.terminal.lines import new_table, say, show_table

GATEWAY, CLUSTER = "gateway", "cluster"
_CLUSTER_FILES = re.compile(r"(gcs_server|raylet|monitor|dashboard|dashboard_agent|log_monitor)\.(out|err|log)")
_REPLICA = re.compile(r"replica_(?P<application>.+)_(?P<deployment>[^_]+)_(?P<id>[^_]+)\.log")
_JOB = re.compile(r"job-driver-(?P<id>.+)\.log")
_WORKER = re.compile(r"worker-(?P<id>[0-9a-f]+)-[0-9a-f]+-\d+\.(out|err)")
_SECONDS_TO_NEW_FILES = 5.0


@dataclass(frozen=True)
class LogFile:
    """One log file on one node.

    Args:
        node: Ray's id of the node.
        path: the path below the node's log directory.
        label: the process that wrote it, such as `replica x8vw8sno` or `worker 0`.
    """

    node: str
    path: str
    label: str


class ClusterLogs:
    """The log files of a running cluster, by source.

    Args:
        settings: the settings that name the cluster and the database of endpoints.

    Raises:
        ClusterError: no cluster is running, or it has no dashboard, which serves the logs.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cluster = clusters.connect(settings, start=False)
        if not self._cluster.dashboard:
            raise ClusterError(
                f"the cluster at {self._cluster.address} has no dashboard, which serves the logs. "
                "Install 'ray[default]' on its head node.",
                code="no_dashboard",
            )

    def sources(self) -> dict[str, list[LogFile]]:
        """All sources and their files: the cluster, the gateway, endpoints, runs and jobs."""
        names = self._names("*")
        serve = self._names("serve/*")
        by_source = {
            CLUSTER: [LogFile(node, name, name) for node, name in names if _CLUSTER_FILES.fullmatch(name)],
            GATEWAY: _gateway(serve),
        }
        for name, applications in self._applications().items():
            by_source[name] = _replicas(serve, applications)
        by_source |= self._runs(names)
        for node, name in names:
            if job := _JOB.fullmatch(name):
                by_source.setdefault(job["id"], []).append(LogFile(node, name, "job"))
        return {source: sorted(files, key=lambda file: file.label) for source, files in by_source.items() if files}

    def files(self, source: str) -> list[LogFile]:
        """The files of one source.

        Raises:
            NotFoundError: the source has no logs on this cluster.
        """
        sources = self.sources()
        if source not in sources:
            known = ", ".join(sources) or "none"
            raise NotFoundError(
                f"no logs of {source!r} on the cluster at {self._cluster.address}; there are logs of: {known}.",
                code="no_logs",
            )
        return sources[source]

    def lines(self, file: LogFile, *, tail: int, follow: bool = False) -> Iterator[str]:
        """The last lines of a file. With `follow`, also new ones, without end."""
        from ray.util.state import get_log
        from ray.util.state.exception import RayStateApiException

        if tail == 0 and not follow:
            return
        rest = ""
        # A log holds whatever a process printed, so it need not be UTF-8.
        chunks = get_log(
            self._cluster.address, node_id=file.node, filename=file.path, tail=tail, follow=follow, encoding=None
        )
        try:
            for chunk in chunks:
                *complete, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
                yield from complete
        # The node can leave, and the file be rotated away. Errors of the connection are OSErrors.
        except (RayStateApiException, OSError) as error:
            yield f"{file.path} cannot be read any further: {error}"
        if rest:
            yield rest

    def _names(self, pattern: str) -> list[tuple[str, str]]:
        """Node and path of every log file that matches a pattern."""
        import ray
        from ray.util.state import list_logs

        names: list[tuple[str, str]] = []
        for node in ray.nodes():
            if node["Alive"]:
                by_component = list_logs(self._cluster.address, node_id=node["NodeID"], glob_filter=pattern)
                files = {name for group in by_component.values() for name in group}
                names += [(node["NodeID"], name) for name in sorted(files)]
        return names

    def _applications(self) -> dict[str, set[str]]:
        """Serve's applications of each endpoint: the one that serves it, and the one of a deployment in progress."""
        from maas_ray.serve.deployment.endpoints import Endpoints

        if not exists(self._settings.database):
            return {}
        records = Endpoints(self._settings).all()
        return {record.name: {record.application, record.serving_application} for record in records}

    def _runs(self, names: Iterable[tuple[str, str]]) -> dict[str, list[LogFile]]:
        """The output of each training run's processes."""
        output: dict[str, list[tuple[str, str]]] = {}
        for node, name in names:
            if worker := _WORKER.fullmatch(name):
                output.setdefault(worker["id"], []).append((node, name))
        runs: dict[str, list[LogFile]] = {}
        for node, name in self._names("train/ray-train-sys-*"):
            record = next(self._records(LogFile(node, name, "")), None)
            if record is None:
                continue
            label = f"worker {record['world_rank']}" if "world_rank" in record else "controller"
            files = [LogFile(*at, label) for at in output.get(record["worker_id"], [])]
            runs.setdefault(record["run_name"], []).extend(files)
        return runs

    def _records(self, file: LogFile) -> Iterator[dict[str, Any]]:
        for line in self.lines(file, tail=1):
            with suppress(ValueError):
                yield json.loads(line)


def _replicas(serve: Iterable[tuple[str, str]], applications: set[str]) -> list[LogFile]:
    files = []
    for node, path in serve:
        replica = _REPLICA.fullmatch(path.removeprefix("serve/"))
        if replica and replica["application"] in applications:
            files.append(LogFile(node, path, f"replica {replica['id']}"))
    return files


def _gateway(serve: Iterable[tuple[str, str]]) -> list[LogFile]:
    from maas_ray.serve.spec import GATEWAY_APP

    proxies = [LogFile(node, path, "proxy") for node, path in serve if path.startswith("serve/proxy_")]
    return [*_replicas(serve, {GATEWAY_APP}), *proxies]


def show_sources(settings: Settings) -> None:
    """Print the sources that have logs."""
    table = new_table("SOURCE", "FILES", "PROCESSES")
    for source, files in ClusterLogs(settings).sources().items():
        labels = dict.fromkeys(file.label for file in files)
        table.add_row(source, str(len(files)), ", ".join(labels))
    show_table(table)


def show_logs(settings: Settings, source: str, *, tail: int, follow: bool) -> None:
    """Print the last lines of a source's files, each under its label.

    Args:
        settings: the settings that name the cluster.
        source: an endpoint, a training run, a submitted job, `gateway` or `cluster`.
        tail: the number of lines of each file.
        follow: print new lines as they come, until interrupted, of files that appear later too.

    Raises:
        ClusterError: no cluster is running.
        NotFoundError: the source has no logs.
    """
    logs = ClusterLogs(settings)
    files = logs.files(source)
    if follow:
        _follow(logs, source, tail)
        return
    for file in files:
        lines = list(logs.lines(file, tail=tail))
        if lines:
            say(f"--- {file.label}: {file.path}")
        for line in lines:
            say(line)


def _follow(logs: ClusterLogs, source: str, tail: int) -> None:
    arrived: queue.Queue[tuple[LogFile, str]] = queue.Queue()
    followed: set[LogFile] = set()

    def read(file: LogFile) -> None:
        for line in logs.lines(file, tail=tail, follow=True):
            arrived.put((file, line))

    last: LogFile | None = None
    while True:
        with suppress(NotFoundError):  # an endpoint that scaled to zero can have no files for a while
            for file in set(logs.files(source)) - followed:
                followed.add(file)
                threading.Thread(target=read, args=(file,), daemon=True).start()
        until = time.monotonic() + _SECONDS_TO_NEW_FILES
        with suppress(queue.Empty):
            while (remaining := until - time.monotonic()) > 0:
                file, line = arrived.get(timeout=remaining)
                if file != last:
                    say(f"--- {file.label}: {file.path}")
                    last = file
                say(line)
