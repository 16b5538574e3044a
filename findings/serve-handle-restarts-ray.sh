#!/usr/bin/env bash
# Ray Serve 2.60: after `ray.shutdown()`, a thread of a deployment's handle starts another Ray cluster by itself,
#   unless `serve.shutdown()` came first.
# Expected: a process that shut Ray down has no cluster, until it asks for one.
# Effect: a program that goes on after `ray.shutdown()` gets a second cluster that nothing ends; with a token for the
#   first one the start fails again and again. `tests/integration/conftest.py` turns automatic starts off before it ends.
# Needs: ray[serve]==2.60.0
# Seen: "after shutdown: initialized False", then "after 30 s at most: initialized True"
set -euo pipefail
source "$(dirname "$0")/environment.sh"
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
python - <<'PY'
import sys
import time

import ray
from ray import serve


@serve.deployment(autoscaling_config={"min_replicas": 1, "max_replicas": 2})
class Echo:
    def __call__(self, text: str) -> str:
        return text


print("ray", ray.__version__)
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
handle = serve.run(Echo.bind(), route_prefix=None)
print("answer:", handle.remote("hello").result(timeout_s=30))
ray.shutdown()
print("after shutdown: initialized", ray.is_initialized())
deadline = time.monotonic() + 30
while not ray.is_initialized() and time.monotonic() < deadline:
    time.sleep(0.5)
print("after 30 s at most: initialized", ray.is_initialized())
sys.exit(0 if ray.is_initialized() else "no cluster was started: the tests' fixture need not turn that off")
PY
