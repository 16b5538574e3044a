"""One small Ray cluster for all integration tests: its own directory, token, ports and settings."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from maas_ray import cluster as clusters
from maas_ray.settings import Settings
from tests.support import forkserver

# Two processes take a file each. The last files to be taken must be short ones.
LONGEST = (
    "training/test_faults.py",
    "training/test_driver.py",
    "tasks/test_text.py",
    "training/test_resume.py",
    "training/test_train.py",
    "training/test_deepspeed.py",
    "jobs/test_jobs.py",
    "tasks/test_own_model.py",
    "training/test_pretrained.py",
    "serve/test_updates.py",
    "data/test_prepare.py",
    "data/test_growth.py",
    "serve/test_answers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the longest files to the front."""
    folder = Path(__file__).parent

    def position(item: pytest.Item) -> int:
        name = item.path.relative_to(folder).as_posix() if item.path.is_relative_to(folder) else ""
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=position)


@pytest.fixture(scope="session")
def settings() -> Iterator[Settings]:
    """Settings of a fresh platform; `MAAS_*` of this process say the same."""
    with (
        tempfile.TemporaryDirectory(prefix="maas-test-", ignore_cleanup_errors=True) as home,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in [name for name in os.environ if name.startswith(("MAAS_", "RAY_ADDRESS"))]:
            patch.delenv(name)
        patch.setenv("MAAS_HOME", home)
        http, grpc = clusters.free_ports(2)
        patch.setenv("MAAS_HTTP_PORT", str(http))
        patch.setenv("MAAS_GRPC_PORT", str(grpc))
        patch.setenv("MAAS_RECONCILE_SECONDS", "0")  # tests look at damage before they repair it
        patch.setenv("MAAS_TRUST_REMOTE_CODE", "1")  # for the whole cluster, because some tests serve user code
        # Processes of a cluster have the environment that it started with; the server is started by who needs it.
        (s3,) = clusters.free_ports(1)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        settings = Settings.from_environment()
        for name, value in settings.environment().items():
            patch.setenv(name, value)
        yield settings


@pytest.fixture(scope="session")
def cluster(settings: Settings) -> Iterator[str]:
    """The address of a Ray cluster of 4 CPUs, to which this process is connected."""
    # Outside pytest's own directories: Ray puts sockets in it, whose paths end at 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="maas-r", dir="/tmp"))
    token = directory / "token"
    token.write_text("0123456789abcdef" * 4)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as resources:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback only
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # by default a run's end is noticed after 2 s
        for name, value in (
            clusters.worker_environment(settings) | clusters.serve_environment(directory / "h")
        ).items():
            patch.setenv(name, value)
        import ray
        from ray._private import auto_init_hook, ray_constants

        if os.environ.get("TEST_FORK") != "0":
            patch.setattr(
                ray_constants, "SETUP_WORKER_FILENAME", resources.enter_context(forkserver.serving(directory))
            )
        context = ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=512 * 1024 * 1024,
            logging_level="ERROR",
            log_to_driver=False,
            runtime_env={"env_vars": clusters.worker_environment(settings)},
            _temp_dir=str(directory),
        )
        patch.setenv("RAY_ADDRESS", context.address_info["gcs_address"])
        try:
            yield context.address_info["gcs_address"]
        finally:
            # Threads of Serve's handles outlive the cluster, and a call of theirs would start another one.
            auto_init_hook.enable_auto_connect = False
            ray.shutdown()
            shutil.rmtree(directory, ignore_errors=True)
