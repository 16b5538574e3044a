"""One process at a time trains a run; the others wait, and find it finished or go on with it.

The lease lies in the platform's database, so processes that share neither database nor storage do not meet.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from maas_ray.database.engine import Database
from maas_ray.database.leases import Lease, this_process
from maas_ray.settings import Settings
from maas_ray.terminal.lines import say

_SECONDS = 30.0
_POLL_SECONDS = 1.0


@contextmanager
def alone(settings: Settings, model: str, run: str) -> Iterator[Lease]:
    """Hold the lease of a run while the block runs. If another process has it, say so, and wait until that one ends.

    Args:
        settings: of the platform.
        model: the run's model.
        run: the run's name.
    """
    lease = Lease(Database(settings.database), f"train/{model}/{run}", this_process(), seconds=_SECONDS)
    if not lease.acquire():
        say(
            f"run {run} is being trained by {lease.holder()}; waiting until that process ends. Ctrl-C ends the wait, "
            "not the training"
        )
        while not lease.acquire():
            time.sleep(_POLL_SECONDS)
    with lease.held(wait_seconds=0.0):
        yield lease
