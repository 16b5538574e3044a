"""Errors, signals and Ray's own messages at the command line."""

import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from maas_ray import cli
from maas_ray.cli.outcome import cause_of
from maas_ray.cluster import connection
from maas_ray.errors import DataError, InvalidError, NotFoundError, SpecError
from maas_ray.settings import Settings
from tests.support import ROOT
from tests.support.errors import raises
from tests.support.terminal import Run, fails, says


@pytest.mark.parametrize("verb", ["prepare", "train", "evaluate", "deploy"])
def test_a_command_and_its_job_report_a_wrong_spec_without_a_traceback(
    maas: Run, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("nope: 1\n")
    arguments = (str(spec), "--set", "x", "--set", "=2")

    command = maas(verb, *arguments)
    script = str(ROOT / "jobs" / f"{verb}.py")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")

    first, *problems = command[2].splitlines()
    assert first == f"{spec}: 2 problems"
    assert [problem.split(": ")[0] for problem in problems] == ["  --set x", "  --set =2"]
    assert (end.value.code, *capsys.readouterr()) == command
    assert command[:2] == (2, "")


def test_a_misspelled_setting_is_an_error(maas: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAAS_STORGE", "x")
    status, _, err = maas("models")

    assert status == 2
    [problem] = err.splitlines()[1:]
    assert says(problem + "\n", "MAAS_STORGE", "MAAS_STORAGE?")


def test_verbose_shows_the_traceback(maas: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "from maas_ray.cli import main; main()", "models", "none", "--verbose"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr

    monkeypatch.setenv("MAAS_VERBOSE", "1")
    with raises(NotFoundError, "unknown_model", "'none'"):  # Python shows its traceback
        maas("models", "none")
    monkeypatch.setenv("MAAS_VERBOSE", "False")
    assert fails(maas("models", "none"), "'none'")


def test_the_platforms_error_is_taken_out_of_rays_wrappers() -> None:
    from ray.exceptions import RayTaskError

    inner = DataError("the input is empty")
    wrapped = RayTaskError("prepare", "Traceback …", inner).as_instanceof_cause()
    outer = RuntimeError("stage failed")
    outer.__cause__ = wrapped

    assert cause_of(outer) is inner
    assert cause_of(wrapped) is inner
    assert cause_of(inner) is inner
    assert cause_of(outer.with_traceback(None)) is inner
    for strange in (ValueError("x"), InvalidError("wrong_type", "x")):
        outer = RuntimeError("a fault of the program")
        outer.__cause__ = strange
        assert cause_of(strange) is strange
        assert cause_of(outer) is outer


def test_an_error_caused_by_another_of_ours_is_shown_itself() -> None:
    error = SpecError("f.yaml", ["a"])
    error.__cause__ = DataError("b")

    assert cause_of(error) is error


def test_an_unexpected_error_begins_with_its_own_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, cli.reported():
        raise ZeroDivisionError("division by zero")

    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines()[0] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_one_line(number: signal.Signals, status: int, tmp_path: Path, settings: Settings) -> None:
    fifo = tmp_path / "spec.yaml"
    os.mkfifo(fifo)  # reading it waits until somebody writes
    # A shell starts background commands with SIGINT ignored, and their children inherit that; a terminal does not.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{code}; from maas_ray.cli import main; main()", "train", str(fifo)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    handle = None
    while handle is None:
        try:
            handle = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert process.poll() is None
            time.sleep(0.05)

    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    os.close(handle)

    assert process.returncode == status
    assert err == "interrupted\n"


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_interrupts_running_code_as_ctrl_c_does(ctrl_c: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with cli.reported():
            try:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(10)
            except KeyboardInterrupt:
                print("cleaning up")
                raise

    terminate, interrupt = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, ctrl_c)
    try:
        with pytest.raises(SystemExit) as end:
            work()
    finally:
        signal.signal(signal.SIGINT, interrupt)

    assert end.value.code == 143
    assert capsys.readouterr() == ("cleaning up\n", "interrupted\n")
    assert signal.getsignal(signal.SIGTERM) is terminate


def test_the_core_worker_is_silent_only_while_it_starts(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It reads the variable when it starts; processes that this one starts later must not inherit it."""
    name = "RAY_BACKEND_LOG_LEVEL"
    monkeypatch.delenv(name, raising=False)
    with connection.core_worker_silent(verbose=False):
        assert os.environ[name] == "fatal"
        os.write(2, b"the level is set")
    os.write(2, b"an error")
    assert capfd.readouterr().err == "an error"
    assert name not in os.environ
    with suppress(ConnectionError), connection.core_worker_silent(verbose=False):
        os.write(2, b"the reason")
        raise ConnectionError
    assert capfd.readouterr().err == "the reason"
    with connection.core_worker_silent(verbose=True):
        assert name not in os.environ
    monkeypatch.setenv(name, "debug")
    with connection.core_worker_silent(verbose=False):
        assert os.environ[name] == "debug"
    assert os.environ[name] == "debug"


def test_the_handler_of_sigterm_survives_ray() -> None:
    def rays(number: int, frame: object) -> None:
        pass

    before = signal.getsignal(signal.SIGTERM)
    try:
        with cli.reported():
            ours = signal.getsignal(signal.SIGTERM)
            with connection.sigterm_kept():
                signal.signal(signal.SIGTERM, rays)
            assert signal.getsignal(signal.SIGTERM) is ours
        with connection.sigterm_kept():  # nobody but Ray handles it
            signal.signal(signal.SIGTERM, rays)
        assert signal.getsignal(signal.SIGTERM) is rays
    finally:
        signal.signal(signal.SIGTERM, before)
