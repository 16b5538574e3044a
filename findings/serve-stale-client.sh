#!/usr/bin/env bash
# Ray Serve 2.60: a process caches Serve's controller and does not notice that another process has restarted Serve.
# Expected: `serve.status()` finds the controller that runs, as its documentation says nothing of processes.
# Effect: a long-lived process fails with ActorDiedError; a pass of the reconciler begins with
#   `maas_ray/ray_private/serve.py` forgetting the cached client.
# Needs: ray[serve]==2.60.0
# Seen: "before: 0 applications", then "after: ActorDiedError"
set -euo pipefail
source "$(dirname "$0")/environment.sh"
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
python - <<'PY'
import os
import subprocess
import sys

import ray
from ray import serve

context = ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
serve.start()
print("before:", len(serve.status().applications), "applications")
other = "import ray; from ray import serve; ray.init(logging_level='ERROR'); serve.shutdown(); serve.start()"
subprocess.run([sys.executable, "-c", other], check=True, capture_output=True)
try:
    print("after:", len(serve.status().applications), "applications")
except ray.exceptions.RayActorError as error:
    print("after:", type(error).__name__)
    sys.exit(0)
sys.exit("Serve noticed the restart: `forget_client` can go")
PY
