"""DeepSpeed's compiled parts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = "from maas_ray.training.deepspeed.build import load_communication; load_communication()"


def test_a_lock_that_a_killed_process_left_behind_stops_nobody(tmp_path: Path):
    from deepspeed.ops.op_builder import ShareMemCommBuilder

    from maas_ray.training.deepspeed.build import build_directory

    if not ShareMemCommBuilder().is_compatible():
        pytest.skip("DeepSpeed compiles nothing here")
    # A copy, with its times, is not compiled again; without one this test compiles it.
    built = tmp_path / ShareMemCommBuilder.NAME
    shutil.copytree(build_directory(ShareMemCommBuilder.NAME), built)
    (built / "lock").touch()
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", LOAD]
    subprocess.run(command, env=environment, timeout=240, check=True, capture_output=True)
    assert not (built / "lock").exists()
