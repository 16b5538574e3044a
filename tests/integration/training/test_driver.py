"""A run whose driver is killed between any two steps of its transaction."""

import json
import os
import signal
import subprocess
import sys

import pytest

from maas_ray import storage
from maas_ray.data.dataset import PreparedDataset
from maas_ray.registry.bundle import bundle_home
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from tests.support.training import text_spec

pytestmark = pytest.mark.usefixtures("cluster")


DRIVER = """
import os, signal, sys, threading, time
from maas_ray import storage
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.training.run import train
from maas_ray.training.spec import TrainSpec

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

where, calls = sys.argv[2], []
if where == "upload":
    upload = storage.uris.upload
    def third(*args):
        calls.append(args)
        return die() if len(calls) == 3 else upload(*args)
    storage.uris.upload = third
elif where == "manifest":
    storage.artifacts.commit = die
elif where == "register":
    Registry.register = die
elif where == "alias":
    Registry.set_alias = die
elif where == "training":
    def watch():
        seen = set()
        while len(seen) < 4:
            seen |= {name for name in storage.list_directory(sys.argv[3]) if name.startswith("step-")}
            time.sleep(0.05)
        die()
    threading.Thread(target=watch, daemon=True).start()
import json
print(train(TrainSpec.parse(json.loads(sys.argv[1])), settings=Settings.from_environment()).reference)
"""


def test_a_driver_that_is_killed_is_started_again_and_leaves_no_version_or_a_whole_one(
    settings: Settings, text: PreparedDataset
):
    # By the time it is killed first, checkpoints have been deleted.
    checkpoints = {"every_steps": 5, "keep": 1}
    spec = text_spec(text, "transaction", run="it", alias="champion", workers=1, max_steps=100, checkpoint=checkpoints)
    home = storage.join(settings.storage, "runs", "transaction", "it")
    fields = spec.model_dump(mode="json", exclude_unset=True)
    registry = Registry(settings)

    def drive(where: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(fields), where, home]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ)

    assert drive("training").returncode == -signal.SIGKILL
    for where in ("upload", "manifest", "register"):
        driven = drive(where)
        assert driven.returncode == -signal.SIGKILL, where
        assert ("resumed from the checkpoint at step" in driven.stdout) == (where == "upload"), driven.stdout
        assert registry.models().get("transaction", []) == [], where
    # Every file lies there, and only the manifest made it a bundle.
    homes = storage.list_directory(bundle_home(settings, "transaction"))
    assert len(homes) == 1
    assert drive("alias").returncode == -signal.SIGKILL
    (version,) = registry.versions("transaction")
    version.open().artifact.verify()
    assert version.aliases == ()
    done = drive("nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "transaction/1"
    (version,) = registry.versions("transaction")
    assert version.aliases == ("champion",)
    assert storage.list_directory(bundle_home(settings, "transaction")) == homes
