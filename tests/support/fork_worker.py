"""The program that Ray starts for a worker in tests: see `forkserver.py`. It imports little, so that it starts fast."""

import json
import os
import socket
import sys


def main() -> None:
    """Have the server fork the worker; else start it as Ray does."""
    context, arguments = {}, []
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        if name == "--serialized-runtime-env-context":
            context = json.loads(value or "{}")
        elif name != "--language":
            arguments.append(argument)
    same_python = context.get("py_executable", sys.executable) == sys.executable and not context.get("command_prefix")
    if same_python and arguments[0].endswith("default_worker.py"):
        variables = {name: os.path.expandvars(value) for name, value in (context.get("env_vars") or {}).items()}
        request = {"arguments": arguments, "environment": os.environ | variables, "directory": os.getcwd()}
        if forked(json.dumps(request).encode() + b"\n"):
            return
    import ray

    setup = os.path.join(os.path.dirname(ray.__file__), "_private", "workers", "setup_worker.py")
    os.execv(sys.executable, [sys.executable, setup, *sys.argv[1:]])


def forked(request: bytes) -> bool:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ["TEST_FORK_SOCKET"])
        sent = socket.send_fds(server, [request], [0, 1, 2])
        if sent < len(request):  # a server that has read everything may have closed its end
            server.sendall(request[sent:])
        return server.recv(1) == b"y"


if __name__ == "__main__":
    main()
