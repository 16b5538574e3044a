"""A run whose driver is killed between any two steps of its transaction."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maas_ray import storage
from maas_ray.data.dataset import PreparedDataset
from maas_ray.registry.bundle import bundle_home
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from tests.support import ROOT
from tests.support.forkserver import SINGLE_THREADED
from tests.support.training import text_spec

pytestmark = pytest.mark.usefixtures("cluster")


# Each driver is a process of its own, which joins the cluster by itself. They are forked, so that the libraries are
# imported once.
DRIVERS = """
import importlib, json, os, signal, sys, threading, time, traceback
from maas_ray import storage
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.training.run import train
from maas_ray.training.spec import TrainSpec
from tests.support.forkserver import MODULES

spec, home = TrainSpec.parse(json.loads(sys.argv[1])), sys.argv[2]

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def drive(where):
    calls = []
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
                seen |= {name for name in storage.list_directory(home) if name.startswith("step-")}
                time.sleep(0.05)
            die()
        threading.Thread(target=watch, daemon=True).start()
    print(train(spec, settings=Settings.from_environment()).reference)

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # where libraries print, when they are imported too
for name in MODULES:
    importlib.import_module(name)
for line in sys.stdin:
    where, said = json.loads(line)
    driver = os.fork()
    if driver:
        print(os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1]), file=answers, flush=True)
        continue
    status = 1
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        drive(where)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
"""


def test_a_driver_that_is_killed_is_started_again_and_leaves_no_version_or_a_whole_one(
    settings: Settings, text: PreparedDataset, tmp_path: Path
):
    # By the time it is killed first, checkpoints have been deleted.
    checkpoints = {"every_steps": 5, "keep": 1}
    spec = text_spec(text, "transaction", run="it", alias="champion", workers=1, max_steps=60, checkpoint=checkpoints)
    home = storage.join(settings.storage, "runs", "transaction", "it")
    fields = spec.model_dump(mode="json", exclude_unset=True)
    registry = Registry(settings)
    command = [sys.executable, "-W", "ignore", "-c", DRIVERS, json.dumps(fields), home]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | SINGLE_THREADED,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as drivers:
        assert drivers.stdin
        assert drivers.stdout

        def drive(where: str) -> tuple[int, str]:
            """The exit status of a driver that dies there, and what it has said."""
            print(json.dumps([where, str(tmp_path / where)]), file=drivers.stdin)
            status = int(drivers.stdout.readline())
            return status, (tmp_path / where).read_text()

        status, said = drive("training")
        assert status == -signal.SIGKILL, said
        for where in ("upload", "manifest", "register"):
            status, said = drive(where)
            assert status == -signal.SIGKILL, (where, said)
            assert ("resumed from the checkpoint at step" in said) == (where == "upload"), said
            assert registry.models().get("transaction", []) == [], where
        # Every file lies there, and only the manifest made it a bundle.
        homes = storage.list_directory(bundle_home(settings, "transaction"))
        assert len(homes) == 1
        assert drive("alias")[0] == -signal.SIGKILL
        (version,) = registry.versions("transaction")
        version.open().artifact.verify()
        assert version.aliases == ()
        status, said = drive("nowhere")
        assert status == 0, said
        assert said.splitlines()[-1] == "transaction/1"
        (version,) = registry.versions("transaction")
        assert version.aliases == ("champion",)
        assert storage.list_directory(bundle_home(settings, "transaction")) == homes
