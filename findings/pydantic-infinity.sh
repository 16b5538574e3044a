#!/usr/bin/env bash
# pydantic-core 2.50: `from_json(…, allow_inf_nan=False)` reads a number beyond the largest double as infinity.
# Expected: an error, as for `Infinity` and `NaN`; JSON cannot express the value that was read.
# Effect: infinity passes every lower bound and reaches a model, or an answer that is no JSON any more.
#   `parse_json` in `maas_ray/serve/api/validation.py` looks for such numbers itself.
# Needs: pydantic-core==2.50.4
# Seen: 'Infinity' ValueError; '1e999' inf; '-1e999' -inf; '[1e400]' [inf]
set -euo pipefail
source "$(dirname "$0")/environment.sh"
python - <<'PYTHON'
import sys
from math import inf

from pydantic_core import from_json


def read(text):
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        return type(error).__name__


found = {text: read(text) for text in ("Infinity", "1e999", "-1e999", "[1e400]")}
print(found)
sys.exit(found != {"Infinity": "ValueError", "1e999": inf, "-1e999": -inf, "[1e400]": [inf]})
PYTHON
