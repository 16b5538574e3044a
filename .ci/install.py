"""Install this package and its extras with uv, from wherever pip is configured to install from.

uv takes half a minute, pip several. uv does not read pip's configuration, so indexes, directories of wheels,
constraints and the certificate are passed on. Pip installs if it has options that are not, or if uv fails.
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
# These have no influence on what is installed, or from where. The certificate is passed on in the environment.
HARMLESS = {
    "cert",
    "default-timeout",
    "timeout",
    "retries",
    "disable-pip-version-check",
    "no-cache-dir",
    "progress-bar",
}
PIP = [sys.executable, "-m", "pip"]


def configured() -> dict[str, str]:
    """Options of `pip install`. The environment goes before the section of the command, and that before `global`."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.partition(".")
        if section in sections:
            sections[section][name] = ast.literal_eval(value)
    return {name: value for options in sections.values() for name, value in options.items()}


def with_uv() -> bool:
    """True if uv has installed everything."""
    options = configured()
    if unknown := options.keys() - OPTIONS.keys() - HARMLESS:
        print(f"uv cannot do what pip is configured to: {', '.join(sorted(unknown))}")
        return False
    passed = [word for name, flag in OPTIONS.items() for one in options.get(name, "").split() for word in (flag, one)]
    certificate = {"SSL_CERT_FILE": options["cert"]} if "cert" in options else {}
    if subprocess.run([*PIP, "install", "-qq", "--disable-pip-version-check", "uv>=0.9,<1"], check=False).returncode:
        return False
    # As pip does: the newest version of all indexes, not that of the first index which has the package.
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--index-strategy", "unsafe-best-match", *passed]
    done = subprocess.run([*command, "--python", sys.executable, *TARGET], env=os.environ | certificate, check=False)
    return not done.returncode


if not with_uv():
    print("uv has not installed the packages; pip does, in several minutes", flush=True)
    subprocess.run([*PIP, "install", "-qq", "--disable-pip-version-check", "--no-compile", *TARGET], check=True)
