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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from maas_ray.cluster import free_ports, serve_environment
from maas_ray.data.dataset import open_dataset
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from tests.support import ROOT

RAY = str(Path(sys.executable).parent / "ray")
MAAS = [sys.executable, "-c", "from maas_ray.cli import main; main()"]


@dataclass(frozen=True)
class Head:
    """A cluster as a user starts it, and how to reach it."""

    environment: dict[str, str]
    address: str
    dashboard: str
    settings: Settings

    def submit(self, *command: str, env_vars: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """`ray job submit --working-dir . -- COMMAND`, from the root of the checkout."""
        runtime_env = ["--runtime-env-json", json.dumps({"env_vars": env_vars})] if env_vars else []
        return subprocess.run(
            [RAY, "job", "submit", "--address", self.dashboard, "--working-dir", ".", *runtime_env, "--", *command],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module", params=["disabled", "token"])
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
    """A small chain of specs over a few made-up documents."""
    directory = tmp_path_factory.mktemp("specs")
    (directory / "documents").mkdir()
    for number in range(40):
        words = " ".join(f"word{(number * step) % 97}" for step in range(1, 60))
        (directory / "documents" / f"{number}.txt").write_text(f"Document {number}. {words}\n")
    (directory / "prepare.yaml").write_text(f"""\
dataset: words
task: {{type: text-generation, tokenizer: {{vocab_size: 300}}, sequence_length: 16}}
sources: [{{format: text, path: {directory}/documents, include: ["*.txt"]}}]
splits: {{validation: 0.1, test: 0.1}}
""")
    (directory / "train.yaml").write_text("""\
dataset: words
model: words-lm
network: {type: llama, hidden_size: 16, layers: 1, heads: 2}
batch_size: 8
max_steps: 3
alias: champion
""")
    (directory / "evaluate.yaml").write_text("version: words-lm@champion\nsplit: validation\n")
    (directory / "deploy.yaml").write_text("version: words-lm@champion\n")
    return directory


def test_a_wrong_spec_ends_the_job_with_its_message(head: Head, specs: Path) -> None:
    done = head.submit("python", "jobs/prepare.py", str(specs / "prepare.yaml"), "--set", "splits.test=7")

    assert done.returncode != 0
    assert "splits.test: input should be less than 1 (found 7)" in done.stdout
    assert "Traceback" not in done.stdout


def test_each_verb_is_a_job(head: Head, specs: Path, tmp_path: Path) -> None:
    # The job's own environment goes before the cluster's, in the driver and in its workers alike.
    storage = {"MAAS_STORAGE": str(tmp_path / "elsewhere")}
    settings = head.settings.model_copy(update={"storage": storage["MAAS_STORAGE"]})

    prepared = head.submit("python", "jobs/prepare.py", str(specs / "prepare.yaml"), env_vars=storage)
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    assert open_dataset(settings, "words").meta.counts.read == 40

    if head.environment["RAY_AUTH_MODE"] == "disabled":
        return  # the others take the same way to the cluster
    trained = head.submit("python", "jobs/train.py", str(specs / "train.yaml"), env_vars=storage)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    version = Registry(settings).resolve("words-lm@champion")
    assert version.uri.startswith(storage["MAAS_STORAGE"])
    assert version.lineage.dataset_fingerprint == open_dataset(settings, "words").fingerprint

    evaluated = head.submit("python", "jobs/evaluate.py", str(specs / "evaluate.yaml"), env_vars=storage)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "words-lm/1 on words/validation" in evaluated.stdout

    deployed = head.submit("python", "jobs/deploy.py", str(specs / "deploy.yaml"), env_vars=storage)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert "words-lm serves words-lm/1 at http://127.0.0.1:" in deployed.stdout
    assert _complete(settings.http_port)["model"] == "words-lm"
    _check_logs(head, storage, version.lineage.run, settings.http_port)


def _check_logs(head: Head, storage: dict[str, str], run: str, port: int) -> None:
    """`maas logs` shows each source of the cluster, by Ray's state API with its token."""
    environment = head.environment | storage | {"RAY_ADDRESS": head.address}

    def maas(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*MAAS, *arguments], env=environment, capture_output=True, text=True, check=False)

    listed = maas("logs")
    assert (listed.returncode, listed.stderr) == (0, "")
    sources = {line.split()[0]: line for line in listed.stdout.splitlines()[1:]}
    assert {"cluster", "gateway", "words-lm", run} <= set(sources)
    assert "controller, worker 0" in sources[run]
    (job, *_) = [source for source in sources if source.startswith("raysubmit_")]

    for source, label in (("words-lm", "replica"), ("gateway", "proxy"), (run, "controller"), ("cluster", "raylet")):
        shown = maas("logs", source)
        assert (shown.returncode, shown.stderr) == (0, ""), source
        assert f"--- {label}" in shown.stdout, source
    shown = maas("logs", job, "--tail", "1").stdout.splitlines()
    assert shown[0].startswith("--- job: job-driver-")
    assert len(shown) == 2
    unknown = maas("logs", "no-such")
    assert unknown.returncode == 1
    assert "words-lm" in unknown.stderr

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
                _complete(port)

        threading.Thread(target=ask, daemon=True).start()
        assert any("-- POST " in line for line in following.stdout)
        asking.set()
        following.send_signal(signal.SIGTERM)  # as Ctrl-C, which commands that run in the background ignore
        assert following.wait(30) == 143
        watchdog.cancel()
    finally:
        following.kill()
        following.communicate()


def _complete(port: int) -> dict[str, object]:
    import httpx

    body = {"model": "words-lm", "prompt": "Document", "max_tokens": 4}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60)
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
    environment = head.environment | {"RAY_ADDRESS": head.address}
    deadline = time.monotonic() + 60
    while True:
        shown = subprocess.run([*MAAS, "status"], env=environment, capture_output=True, text=True, check=False)
        assert shown.returncode == 0, shown.stderr
        if "a-sleeper  sleep 60" in shown.stdout or time.monotonic() > deadline:
            break
        time.sleep(1)

    assert "a-sleeper  sleep 60  for " in shown.stdout
    assert f"cluster    {head.address}, from RAY_ADDRESS" in shown.stdout
    assert shown.stderr == ""
    shown = subprocess.run([*MAAS, "status", "--json"], env=environment, capture_output=True, text=True, check=True)
    document = json.loads(shown.stdout)
    assert (document["cluster"]["address"], document["cluster"]["dashboard"]) == (head.address, head.dashboard)
    assert document["cluster"]["resources"]["CPU"]["total"] == 4
    assert ("a-sleeper", "sleep 60") in [(job["id"], job["command"]) for job in document["cluster"]["jobs"]]

    subprocess.run([RAY, "job", "stop", "--address", head.dashboard, "a-sleeper"], env=head.environment, check=True)
    stranger = head.environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    refused = subprocess.run(
        [RAY, "job", "list", "--address", head.dashboard], env=stranger, capture_output=True, check=False
    )
    assert (refused.returncode == 0) == (head.environment["RAY_AUTH_MODE"] == "disabled")
