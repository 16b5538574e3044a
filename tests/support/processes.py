"""Processes of this test's own cluster."""

from contextlib import suppress

import psutil


def train_workers() -> list[psutil.Process]:
    """Ray Train's workers among this process's descendants."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found
