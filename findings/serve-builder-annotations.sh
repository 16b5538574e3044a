#!/usr/bin/env bash
# Ray Serve 2.60: a builder whose module has `from __future__ import annotations` receives a plain dict.
# Expected: the pydantic model that the builder's annotation names, as the documentation of typed builders says.
# Effect: nothing is validated and defaults are missing, without a warning. `maas_ray/serve/spec.py`, `gateway.py`,
#   `model_app.py` and `shared.py` do not postpone annotations.
# Needs: ray[serve]==2.60.0
# Seen: "Args" without the import, "dict" with it
set -euo pipefail
source "$(dirname "$0")/environment.sh"

for first in "" "from __future__ import annotations"; do
  cat >builder.py <<PY
$first
from pydantic import BaseModel
from ray import serve

class Args(BaseModel):
    replicas: int = 1

@serve.deployment
class App:
    pass

def build(args: Args):
    print(type(args).__name__)
    return App.bind()
PY
  # `serve run builder:build replicas=2` calls this in its controller; here no cluster is needed.
  python -W ignore - <<'PY'
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call
import builder

call(builder.build, {"replicas": "2"})
PY
done | tee seen
[[ $(tr '\n' ' ' <seen) == "Args dict " ]]
