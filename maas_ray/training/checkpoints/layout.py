"""Names of a checkpoint's files and directories.

    <run>/step-00000200-3fa9c1/
        state/…                 DeepSpeed's own files, each rank its shards
        rank-00000.random.pt    rank 0's random state
        position.json           written by rank 0: step, number of workers, ledger, metrics
        rank-00000.json         rank 0's manifest, written last: its files with size and sha256; one for each rank
        validation.json         metrics that were measured on the checkpoint later, beside the training

A checkpoint is whole if every rank's manifest exists and every file matches its manifest. Anything less was
interrupted, and the run resumes from the checkpoint before.
"""

import time
import uuid

TAG = "state"
UNIVERSAL_TAG = f"{TAG}_universal"
POSITION = "position.json"
VALIDATION = "validation.json"
UNTRAINED = "maas_untrained"
"""In a rank's model states: names of the trained parameters, and exact values of the others."""
PREFIX = "step-"


def name_of(step: int, attempt: str) -> str:
    """A checkpoint's name. It is unique to the attempt, so that shards of one that died are never mixed in."""
    return f"{PREFIX}{step:08d}-{attempt}"


def new_attempt() -> str:
    """The end of a name: when the checkpoint was begun, in seconds, and random digits."""
    return f"{int(time.time()):08x}{uuid.uuid4().hex[:6]}"


def age_of(name: str) -> tuple[int, int, str]:
    """The order of names by age: by step, and of one step by time. Names of version 0.2 have no time."""
    step, _, attempt = name.removeprefix(PREFIX).partition("-")
    return int(step) if step.isdigit() else -1, len(attempt), attempt


def manifest(rank: int) -> str:
    """The manifest of a rank's files."""
    return f"rank-{rank:05d}.json"


def random_state(rank: int) -> str:
    """The random state of a rank."""
    return f"rank-{rank:05d}.random.pt"
