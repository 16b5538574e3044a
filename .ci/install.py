"""Install this package and its extras with uv, from wherever pip is configured to install from.

uv takes half a minute where pip takes five. It does not read pip's configuration: indexes, directories of wheels,
constraints and certificates are passed on. If uv fails, pip installs.
"""

import ast
import os
import subprocess
import sys

TARGET = ["-c", "constraints.txt", "-e", ".[test,docs,client,compression]"]
OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "-c",
}
PIP = [sys.executable, "-m", "pip"]


def configured() -> dict[str, str]:
    """Options of pip. The environment goes before files, and a narrower file before a wider one."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
    levels: dict[str, dict[str, str]] = {"global": {}, "user": {}, "site": {}, ":env:": {}}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        level, _, name = key.partition(".")
        if level in levels:
            levels[level][name] = ast.literal_eval(value)
    return {name: value for options in levels.values() for name, value in options.items()}


def with_uv() -> bool:
    """True if uv has installed everything."""
    options = configured()
    passed = [word for name, flag in OPTIONS.items() for one in options.get(name, "").split() for word in (flag, one)]
    certificates = {"SSL_CERT_FILE": options["cert"]} if "cert" in options else {}
    installed = subprocess.run([*PIP, "install", "-qq", "--disable-pip-version-check", "uv>=0.9,<1"], check=False)
    if installed.returncode:
        return False
    # As pip does: the newest version of all indexes, not that of the first index which has the package.
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--index-strategy", "unsafe-best-match", *passed]
    done = subprocess.run([*command, "--python", sys.executable, *TARGET], env=os.environ | certificates, check=False)
    return not done.returncode


if not with_uv():
    print("uv could not install; installing with pip, which takes minutes", flush=True)
    subprocess.run([*PIP, "install", "-qq", "--disable-pip-version-check", "--no-compile", *TARGET], check=True)
