"""`maas` in a process with an environment of its own; several commands share the imports, which take a second."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from maas_ray.cli import main

ended = []
for command in json.loads(sys.argv.pop()):
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            main(*command)
        except SystemExit as end:
            ended.append([end.code, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""


class Ended(NamedTuple):
    """A command that has ended: its exit status and its output."""

    status: int
    out: str
    err: str


def maas(*commands: Sequence[str], environment: Mapping[str, str]) -> list[Ended]:
    """Run the commands one after another in one process, which itself prints nothing but their results."""
    program = [sys.executable, "-c", _PROGRAM, json.dumps(commands)]
    done = subprocess.run(program, env=dict(environment), capture_output=True, text=True, check=False, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")
    return [Ended(*ended) for ended in json.loads(done.stdout)]
