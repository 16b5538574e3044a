"""Each job script, submitted to a cluster of `ray start --head`, with Ray's token authentication on and off."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from maas_ray.cluster import free_ports, serve_environment
from maas_ray.data.dataset import open_dataset
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from tests.support import ROOT
from tests.support.commands import Ended, maas

RAY = str(Path(sys.executable).parent / "ray")
MAAS = [sys.executable, "-c", "from maas_ray.cli import main; main()"]


@dataclass(frozen=True)
class Head:
    """A cluster as a user starts it, and how to reach it."""

    environment: dict[str, str]
    address: str
    dashboard: str
    settings: Settings

    def submit(
        self, *commands: Sequence[str], env_vars: dict[str, str] | None = None
    ) -> "list[subprocess.CompletedProcess[str]]":
        """Submit jobs at the same time, each with the checkout as its working directory, and wait for them."""
        runtime_env = ["--runtime-env-json", json.dumps({"env_vars": env_vars})] if env_vars else []
        submit = [RAY, "job", "submit", "--address", self.dashboard, "--working-dir", ".", *runtime_env, "--"]

        def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                [*submit, *command],
                cwd=ROOT,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )

        with ThreadPoolExecutor() as pool:
            return list(pool.map(run, commands))

    def maas(self, *commands: Sequence[str], env_vars: dict[str, str] | None = None) -> list[Ended]:
        return maas(*commands, environment=self.environment | (env_vars or {}) | {"RAY_ADDRESS": self.address})


@pytest.fixture(scope="module", params=["token", pytest.param("disabled", marks=pytest.mark.slow)])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    directory = tmp_path_factory.mktemp("head")
    (directory / "token").write_text("fedcba9876543210" * 4)
    port, dashboard, agent, client, http = free_ports(5)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAAS_", "RAY_"))}
    settings = Settings.from_environment({"MAAS_HOME": str(directory), "MAAS_HTTP_PORT": str(http)})
    # Sockets lie in Ray's directory, and their paths end at 107 bytes.
    ray_directory = Path(tempfile.mkdtemp(prefix="maas-j", dir="/tmp"))
    environment = {
        **kept,
        **settings.environment(),
        **serve_environment(ray_directory / "h"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        "RAY_AUTH_MODE": request.param,
        "RAY_AUTH_TOKEN_PATH": str(directory / "token"),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
    }
    command = [
        *(RAY, "start", "--head", "--block", f"--temp-dir={ray_directory}", f"--port={port}", "--num-cpus=4"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--ray-client-server-port={client}", "--disable-usage-stats", "--object-store-memory=536870912"),
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while not (ray_directory / "ray_current_cluster").exists():
            assert process.poll() is None, (directory / "log").read_text()
            time.sleep(0.2)
        address = (ray_directory / "ray_current_cluster").read_text()
        yield Head(environment, address, f"http://127.0.0.1:{dashboard}", settings)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(ray_directory, ignore_errors=True)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small chain of specs over a made-up table, whose network needs no large library."""
    directory = tmp_path_factory.mktemp("specs")
    rows = "".join(f"{number},{number % 7},{3 * number - number % 7}\n" for number in range(100))
    (directory / "rows.csv").write_text(f"x,y,result\n{rows}")
    (directory / "prepare.yaml").write_text(f"""\
dataset: numbers
task: {{type: tabular-regression, target: result}}
sources: [{{format: csv, path: {directory}/rows.csv}}]
splits: {{validation: 0.2, test: 0.2}}
""")
    (directory / "train.yaml").write_text("""\
dataset: numbers
model: arithmetic
network: {type: linear}
batch_size: 8
max_steps: 3
validation: {place: workers}
alias: champion
""")
    (directory / "evaluate.yaml").write_text("version: arithmetic@champion\nsplit: validation\n")
    (directory / "deploy.yaml").write_text("version: arithmetic@champion\n")
    return directory


def test_each_verb_is_a_job(head: Head, specs: Path, tmp_path: Path) -> None:
    # The job's own environment goes before the cluster's, in the driver and in its workers alike.
    storage = {"MAAS_STORAGE": str(tmp_path / "elsewhere")}
    settings = head.settings.model_copy(update={"storage": storage["MAAS_STORAGE"]})

    def job(verb: str, *arguments: str) -> tuple[str, ...]:
        return ("python", f"jobs/{verb}.py", str(specs / f"{verb}.yaml"), *arguments)

    prepared, wrong = head.submit(job("prepare"), job("prepare", "--set", "splits.test=7"), env_vars=storage)
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    assert open_dataset(settings, "numbers").meta.counts.read == 100
    assert wrong.returncode != 0
    assert "splits.test: input should be less than 1 (found 7)" in wrong.stdout
    assert "Traceback" not in wrong.stdout

    if head.environment["RAY_AUTH_MODE"] == "disabled":
        return  # the others take the same way to the cluster
    [trained] = head.submit(job("train"), env_vars=storage)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    version = Registry(settings).resolve("arithmetic@champion")
    assert version.uri.startswith(storage["MAAS_STORAGE"])
    assert version.lineage.dataset_fingerprint == open_dataset(settings, "numbers").fingerprint

    evaluated, deployed = head.submit(job("evaluate"), job("deploy"), env_vars=storage)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "arithmetic/1 on numbers/validation" in evaluated.stdout
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert "arithmetic serves arithmetic/1 at http://127.0.0.1:" in deployed.stdout
    assert _predict(settings.http_port)["version"] == "1"
    # From a shell, without the job's directory, and with other variables: a live option changes, and nothing restarts.
    change = ["deploy", str(specs / "deploy.yaml"), "--set", "request_timeout_s=200"]
    [again] = head.maas(change, env_vars=storage | {"MAAS_SHARED": "{max_models: 3}"})
    assert again.status == 0, again.err
    _check_secrets(head)
    _check_logs(head, storage, version.lineage.run, settings.http_port)


def _check_secrets(head: Head) -> None:
    """Serve's REST API, which the dashboard shows, has no address of a database."""
    import httpx

    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    details = httpx.get(
        f"{head.dashboard}/api/serve/applications/", headers={"Authorization": f"Bearer {token}"}, timeout=60
    )
    assert details.status_code == 200, details.text
    assert "request_timeout_s" in details.text
    assert f'MAAS_DATABASE": "{head.settings.database}' not in details.text.replace(" ", "")
    assert head.settings.mlflow not in details.text


def _check_logs(head: Head, storage: dict[str, str], run: str, port: int) -> None:
    """`maas logs` shows each source of the cluster, by Ray's state API with its token."""
    labels = {"arithmetic": "replica", "gateway": "proxy", run: "controller", "cluster": "raylet"}
    listed, unknown, *logs = head.maas(
        ["logs"], ["logs", "no-such"], *(["logs", source] for source in labels), env_vars=storage
    )
    assert (listed.status, listed.err) == (0, "")
    sources = {line.split()[0]: line for line in listed.out.splitlines()[1:]}
    assert {"cluster", "gateway", "arithmetic", run} <= set(sources)
    assert sources["arithmetic"].count("replica ") == sources["gateway"].count("replica ") == 1
    assert "controller, worker 0" in sources[run]
    assert unknown.status == 1
    assert "arithmetic" in unknown.err
    for (source, label), shown in zip(labels.items(), logs, strict=True):
        assert (shown.status, shown.err) == (0, ""), source
        assert f"--- {label}" in shown.out, source
    (job, *_) = [source for source in sources if source.startswith("raysubmit_")]
    [shown] = head.maas(["logs", job, "--tail", "1"], env_vars=storage)
    assert shown.out.startswith("--- job: job-driver-")
    assert len(shown.out.splitlines()) == 2

    environment = head.environment | storage | {"RAY_ADDRESS": head.address}
    following = subprocess.Popen(
        [*MAAS, "logs", "gateway", "--follow", "--tail", "0"], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert following.stdout is not None
        watchdog = threading.Timer(60, following.kill)
        watchdog.start()
        asking = threading.Event()

        def ask() -> None:
            while not asking.wait(1):
                _predict(port)

        threading.Thread(target=ask, daemon=True).start()
        assert any("-- POST " in line for line in following.stdout)
        asking.set()
        following.send_signal(signal.SIGTERM)  # as Ctrl-C, which commands that run in the background ignore
        assert following.wait(30) == 143
        watchdog.cancel()
    finally:
        following.kill()
        following.communicate()


def _predict(port: int) -> dict[str, object]:
    import httpx

    answer = httpx.post(f"http://127.0.0.1:{port}/v1/models/arithmetic/predict", json={"x": 1, "y": 2}, timeout=60)
    answer.raise_for_status()
    found: dict[str, object] = answer.json()
    return found


def test_status_shows_running_jobs_and_who_may_not_see_them(head: Head) -> None:
    submit = [RAY, "job", "submit", "--address", head.dashboard]
    submission = subprocess.run(
        [*submit, "--no-wait", "--submission-id", "a-sleeper", "--", "sleep", "60"],
        env=head.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert submission.returncode == 0, submission.stdout + submission.stderr
    deadline = time.monotonic() + 60
    while True:
        shown, as_json = head.maas(["status"], ["status", "--json"])
        assert (shown.status, shown.err) == (0, "")
        if "a-sleeper  sleep 60" in shown.out or time.monotonic() > deadline:
            break
        time.sleep(1)

    assert "a-sleeper  sleep 60  for " in shown.out
    assert f"cluster    {head.address}, from RAY_ADDRESS" in shown.out
    document = json.loads(as_json.out)
    assert (document["cluster"]["address"], document["cluster"]["dashboard"]) == (head.address, head.dashboard)
    assert document["cluster"]["resources"]["CPU"]["total"] == 4
    assert ("a-sleeper", "sleep 60") in [(job["id"], job["command"]) for job in document["cluster"]["jobs"]]

    subprocess.run([RAY, "job", "stop", "--address", head.dashboard, "a-sleeper"], env=head.environment, check=True)
    stranger = head.environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    refused = subprocess.run(
        [RAY, "job", "list", "--address", head.dashboard], env=stranger, capture_output=True, check=False
    )
    assert (refused.returncode == 0) == (head.environment["RAY_AUTH_MODE"] == "disabled")
