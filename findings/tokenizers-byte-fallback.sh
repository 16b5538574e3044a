#!/usr/bin/env bash
# tokenizers 0.23: the ByteFallback decoder turns whole characters into U+FFFD if the next character is unfinished.
# Expected: the whole characters of a run of byte tokens, and U+FFFD for the bytes that are left.
# Effect: text that is decoded token by token, as a server does while it streams, takes back characters that it had
#   already sent. `maas_ray/serve/text/codec.py` keeps what it sent, and waits for the end of an unfinished character.
# Needs: tokenizers==0.23.3
# Seen: {1: '�', 2: 'é', 3: '���', 4: 'éé'}
set -euo pipefail
source "$(dirname "$0")/environment.sh"
python - <<'PYTHON'
import sys

from tokenizers import decoders

decoder = decoders.ByteFallback()
tokens = [f"<0x{byte:02X}>" for byte in "éé".encode()]
found = {count: decoder.decode(tokens[:count]) for count in range(1, 5)}
print(found)
sys.exit(found != {1: "\ufffd", 2: "é", 3: "\ufffd" * 3, 4: "éé"})
PYTHON
