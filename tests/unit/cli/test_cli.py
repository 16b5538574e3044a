"""`maas` in a terminal, without a cluster."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from maas_ray import cli, cluster
from maas_ray.cli.outcome import cause_of
from maas_ray.cluster import connection
from maas_ray.errors import DataError, InvalidError, NotFoundError, SpecError
from maas_ray.serve.deployment import serve_control
from maas_ray.settings import Settings
from tests.support import ROOT
from tests.support.bundles import image_task, register
from tests.support.datasets import digits_dataset
from tests.support.errors import raises

COMMANDS = [
    "prepare",
    "train",
    "evaluate",
    "predict",
    "deploy",
    "promote",
    "rollback",
    "undeploy",
    "alias",
    "data",
    "models",
    "runs",
    "endpoints",
    "diff",
    "status",
    "up",
    "reconcile",
    "down",
    "spec",
    "logs",
]


Run = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def maas(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `maas` in this process: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("MAAS_VERBOSE", "0")  # `--verbose` sets it

    def call(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["maas", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return call


def says(message: str, *values: str) -> bool:
    """True if a message is one line that names these values."""
    return message.count("\n") == 1 and all(value in message for value in values)


def fails(ended: tuple[Any, str, str], *values: str) -> bool:
    """True if a command printed nothing but one line of error with these values."""
    status, out, err = ended
    return (status, out) == (1, "") and says(err, *values)


# --- help ------------------------------------------------------------------------------------------


def test_help_answers_at_once() -> None:
    large = {"numpy", "pandas", "pyarrow", "pydantic", "fsspec", "ray", "torch", "transformers", "mlflow", "sqlalchemy"}
    code = f"""
import atexit, sys
from maas_ray.cli import main
atexit.register(lambda: print(sorted({large!r} & sys.modules.keys())))
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "maas prepare" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_command_and_shows_the_way(maas: Run) -> None:
    _, out, _ = maas("--help")

    for command in COMMANDS:
        assert re.search(rf"│ {command} +\w", out), command
    assert out.index("maas prepare") < out.index("maas train") < out.index("maas deploy") < out.index("maas status")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_teaches(maas: Run, command: str) -> None:
    _, out, _ = maas(command, "--help")

    assert f"Usage: maas {command}" in out
    assert re.search(rf"(?m)^   (.* )?maas {command}\b", out), "an example"
    assert "<bool>" not in out
    assert "{" not in out.splitlines()[1]


def test_version(maas: Run) -> None:
    from maas_ray import __version__

    assert maas("--version") == (0, f"maas_ray {__version__}\n", "")


def test_a_misspelled_command_is_suggested(maas: Run) -> None:
    status, _, err = maas("trian")

    assert status == 2
    assert "Did you mean 'train'?" in err


# --- errors ----------------------------------------------------------------------------------------


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


# --- commands on an empty platform ---------------------------------------------------------------


def test_commands_on_an_empty_platform_print_one_line_and_create_no_files(maas: Run, settings: Settings) -> None:
    for command in ("models", "runs", "endpoints", "diff", "reconcile", "down"):
        status, out, err = maas(command)
        assert status == 0, err
        assert len(out.splitlines()) == 1

    for command in ("models", "runs", "endpoints", "diff"):
        assert maas(command, "--json") == (0, "[]\n", "")
    for command in ("runs", "endpoints", "rollback"):
        assert fails(maas(command, "x"), "'x'")
    assert {path.name for path in Path(settings.home).iterdir()} <= {"cluster.lock"}


# --- the registry ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A platform's home with two versions of a model, the first of them `champion`."""
    import numpy as np
    from safetensors.numpy import save_file

    from maas_ray.registry.bundle import BundleMeta, Lineage, publish_bundle
    from maas_ray.registry.versions import Registry

    home = tmp_path_factory.mktemp("registry")
    settings = Settings(home=str(home))
    registry = Registry(settings)
    for number in (1, 2):
        directory = tmp_path_factory.mktemp("bundle")
        save_file({"x": np.array([number])}, directory / "model.safetensors")
        lineage = Lineage(
            dataset="words",
            dataset_fingerprint="f" * 64,
            measured_rows={"validation": 60},
            run=f"run-{number}",
            code_revision="abc",
            spec={"model": "lm", "network": {"type": "llama", "layers": number}, "alias": None},
        )
        metrics = {"validation/perplexity": 10.0 / number, "validation/loss": 1.0, "test/perplexity": 11.0}
        meta = BundleMeta(name="lm", task="text-generation", metrics=metrics, lineage=lineage)
        registry.register(publish_bundle(settings, directory, meta))
    registry.set_alias(registry.resolve("lm/1"), "champion")
    return home


@pytest.fixture
def run(maas: Run, settings: Settings, registry_home: Path) -> Run:
    """`maas` on a copy of `registry_home`."""
    shutil.copytree(registry_home, settings.home)
    return maas


def test_models_lists_versions_with_aliases_and_the_metric_that_counts(run: Run) -> None:
    status, out, _ = run("models")
    lines = out.splitlines()

    assert status == 0
    assert lines[0].split() == ["MODEL", "VERSION", "ALIASES", "TASK", "METRICS", "CREATED"]
    assert lines[1].split()[:3] == ["lm", "2", "text-generation"]
    assert lines[2].split()[:4] == ["lm", "1", "champion", "text-generation"]
    assert "perplexity 5 (validation), 11 (test)" in lines[1] or "perplexity 11 (test), 5 (validation)" in lines[1]


def test_models_of_a_name_shows_lineage(run: Run) -> None:
    _, text, _ = run("models", "lm")
    [second, first] = json.loads(run("models", "lm", "--json")[1])

    assert "lm/2\n  aliases   none" in text
    assert f"dataset   words ({'f' * 16})" in text
    assert text.count("  spec\n    model: lm\n    network: {type: llama, layers: 2}\n    alias: null\nlm/1\n") == 1
    assert text.count("spec") == 1
    assert (second["reference"], first["aliases"]) == ("lm/2", ["champion"])
    assert first["lineage"]["run"] == "run-1"
    assert first["lineage"]["spec"]["network"] == {"type": "llama", "layers": 1}
    assert first["metrics"]["validation/perplexity"] == 10.0


def test_an_alias_moves(run: Run) -> None:
    assert run("alias", "lm", "2", "champion") == (0, "lm@champion is now lm/2\n", "")
    assert [one["aliases"] for one in json.loads(run("models", "lm", "--json")[1])] == [["champion"], []]
    assert fails(run("alias", "lm", "7", "champion"), "lm", "7", "2, 1")


def test_an_alias_moves_only_if_the_gate_passes(run: Run) -> None:
    status, out, err = run("alias", "lm", "2", "champion", "--if", "validation/perplexity > champion")
    assert (status, out) == (1, "")
    for value in ("lm@champion", "lm/2 has 5", "lm/1 has 10", "validation/perplexity > champion", "60 rows"):
        assert value in err
    assert run("promote", "lm/2", "champion", "--if", "f1 >= champion")[0] == 1
    assert run("alias", "lm", "2", "champion", "--if", "f1 ~ champion")[0] == 2
    status, out, err = run("promote", "lm/2", "champion", "--if", "validation/perplexity <= champion * 0.6")
    gate, moved = out.splitlines()
    assert (status, err) == (0, "")
    for value in ("validation/perplexity <= champion * 0.6", "lm/2 has 5", "lm/1 has 10", "6", "60 rows"):
        assert value in gate
    assert moved == "lm@champion is now lm/2; no endpoint was deployed from it"


def test_one_version_is_shown_with_its_evaluations(run: Run) -> None:
    status, out, _ = run("models", "lm@champion")

    assert status == 0
    assert out.startswith("lm/1\n  aliases   champion\n")
    assert [one["evaluations"] for one in json.loads(run("models", "lm/1", "--json")[1])] == [[]]
    assert fails(run("models", "lm/7"), "lm", "7", "2, 1")


def test_promoting_without_endpoints_moves_the_alias(run: Run) -> None:
    said = "lm@champion is now lm/2; no endpoint was deployed from it\n"
    assert run("promote", "lm/2", "champion") == (0, said, "")
    assert [one["aliases"] for one in json.loads(run("models", "lm", "--json")[1])] == [["champion"], []]
    assert fails(run("promote", "lm/7", "champion"), "lm", "7", "2, 1")


def test_a_difference_ends_with_status_1(run: Run, tmp_path: Path) -> None:
    spec = tmp_path / "deploy.yaml"
    spec.write_text("version: lm@champion\n")

    status, out, err = run("diff", str(spec))

    assert (status, err) == (1, "")
    assert out.splitlines()[1].split() == ["lm", "missing", "lm/1", "nothing"]
    assert run("diff", str(spec), "--set", "version=lm/7")[0] == 1


@pytest.mark.parametrize("alias", ["latest", "v1", "a b", "../x", ""])
def test_an_alias_that_cannot_be_used_is_refused(run: Run, alias: str) -> None:
    for command in (("alias", "lm", "1", alias), ("promote", "lm/1", alias)):
        status, _, err = run(*command)

        assert status == 2
        assert repr(alias) in err.splitlines()[0]


@pytest.mark.parametrize("reference", ["lm@", "lm/x", "lm@a@b", "@champion", ""])
def test_an_invalid_reference_is_not_deployed(run: Run, reference: str) -> None:
    status, _, err = run("deploy", reference)

    assert status == 2
    assert err.startswith(f"maas deploy {reference}: 1 problem\n  version: ")


@pytest.mark.parametrize(
    ("verb", "text", "status", "place", "values"),
    [
        ("train", "model: m\nnetwork: {type: cnn}\ndataset: d\n", 1, ", line 3: dataset: ", ["'d'"]),
        ("evaluate", "version: lm@best\n", 1, ", line 1: version: ", ["lm", "'best'", "champion"]),
        ("evaluate", "version: lm@\n", 2, ": 1 problem\n  line 1: version: ", ["'lm@'"]),
        ("evaluate", "version: lm/1\ndataset: d\n", 1, ", line 2: dataset: ", ["'d'"]),
        ("deploy", "version: lm/7\n", 1, ", line 1: version: ", ["lm", "7", "2, 1"]),
    ],
)
def test_an_error_about_a_name_in_a_spec_has_file_and_line(
    run: Run, tmp_path: Path, verb: str, text: str, status: int, place: str, values: list[str]
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)

    ended, _, err = run(verb, str(path))

    assert ended == status
    assert err.startswith(f"{path}{place}")
    assert all(value in err for value in values)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("image-classification", "  curl -F file=@PATH http://h:1/v1/models/m/predict\n"),
        ("text-generation", "  curl http://h:1/v1/completions -H"),
    ],
)
def test_a_deployed_endpoint_is_shown_with_a_command_to_try(
    task: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from maas_ray.serve.deployment.verbs import Endpoint
    from maas_ray.views.endpoints import show_deployed

    show_deployed(Endpoint("m", "m/1", task, "", "serving", 1, {}, False, "http://h:1", "", None))

    assert says in capsys.readouterr().out


def test_status_as_json_has_every_version_and_no_cluster(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(cluster, "find", lambda settings: None)

    document = json.loads(run("status", "--json")[1])

    assert (document["cluster"], document["endpoints"]) == (None, [])
    assert [version["reference"] for version in document["models"]] == ["lm/2", "lm/1"]


def test_spec_prints_a_template_or_a_schema(run: Run) -> None:
    status, template, err = run("spec", "train", "--with", "network=resnet")
    schema = json.loads(run("spec", "train", "--schema")[1])

    assert (status, err) == (0, "")
    assert "\n  type: resnet\n" in template
    assert "\n#batch_size: 32\n" in template
    assert schema["properties"]["batch_size"]["description"]
    assert run("spec", "train", "--with", "network=none")[0] == 2
    assert run("spec", "tarin")[0] == 2


def test_a_dry_run_of_prepare_checks_the_input_and_writes_nothing(run: Run, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n")
    spec = tmp_path / "prepare.yaml"
    spec.write_text(
        f"dataset: d\ntask: {{type: text-generation}}\nsources: [{{format: text, path: {tmp_path}/a.txt}}]\n"
    )

    status, out, err = run("prepare", str(spec), "--dry-run")

    assert (status, err) == (0, "")
    assert "dataset d: " in out
    assert "1 file" in out
    assert not (Path(settings.storage) / "datasets").exists()
    assert run("prepare", str(spec), "--dry-run", "--set", f"sources.0.path={tmp_path}/none")[0] == 1


def test_a_dry_run_of_train_says_what_would_be_trained(run: Run, settings: Settings, tmp_path: Path) -> None:
    dataset = digits_dataset(settings, "digits")
    spec = tmp_path / "train.yaml"
    spec.write_text(f"dataset: {dataset.uri}\nmodel: m\nnetwork: {{type: cnn}}\n")

    status, out, err = run("train", str(spec), "--dry-run")

    assert (status, err) == (0, "")
    for value in ("digits", "1,437 rows", "cnn", "45"):
        assert value in out
    assert run("train", str(spec), "--dry-run", "--set", "network.type=llama")[0] == 2
    assert run("models", "m")[0] == 1


def test_a_dry_run_of_deploy_says_what_would_change(
    run: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_control, "connected", lambda _: False)
    register(settings, "img", image_task(), tmp_path / "bundle", seed=1, alias="champion")

    status, out, err = run("deploy", "img@champion", "--endpoint", "beta", "--dry-run")

    assert (status, err) == (0, "")
    assert out.startswith("endpoint beta: img/1, image-classification\n")
    assert json.loads(run("endpoints", "--json")[1]) == []
    assert run("deploy", "img/7", "--dry-run")[0] == 1
