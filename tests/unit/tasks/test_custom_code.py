"""Code of a user's own: trusted, carried whole, and kept apart from other versions."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from maas_ray.errors import (
    CorruptError,
    DataError,
    SpecError,
    UntrustedCodeError,
)
from maas_ray.registry.bundle import Bundle, BundleMeta, Lineage, publish_bundle
from maas_ray.settings import Settings
from maas_ray.tasks import load_task
from maas_ray.tasks.custom_task import check_unchanged
from maas_ray.training.spec import TrainSpec
from maas_ray.user_code import trust
from maas_ray.user_code.source import SourceCode
from tests.support.custom import CODE, fitted, prepare_spec, save_bundle
from tests.support.errors import raises


def test_code_of_an_artefact_runs_only_if_it_is_trusted(
    here: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_bundle(fitted(prepare_spec()), here / "bundle")
    meta = BundleMeta(name="own", task="mine:Mine", metrics={}, lineage=Lineage())
    bundle: Bundle = publish_bundle(settings, directory, meta)

    # A bundle is refused even if the same code is on the import path: its author need not be the one who serves it.
    with raises(UntrustedCodeError, "untrusted_code", "/mine.py under source/", "MAAS_TRUST_REMOTE_CODE=1"):
        bundle.load_task(bundle.fetch())
    listed = {entry.path: entry.sha256 for entry in bundle.artifact.files}
    assert any(path.startswith("source/") and path.endswith("/mine.py") for path in listed)

    monkeypatch.setattr(trust, "_vouched", set())
    assert load_task(directory).spec.type == "mine:Mine"  # a dataset's code is the caller's own
    (here / "mine.py").write_text(CODE.replace("SCALE = 1.0", "SCALE = 2.0"))
    monkeypatch.setattr(trust, "_vouched", set())
    with raises(UntrustedCodeError, "code_changed", "mine:Mine", "(mine.py)"):
        load_task(directory)
    with raises(DataError, "code_changed", "mine:Mine", "(mine.py)", "`maas prepare`"):
        check_unchanged(directory)
    (here / "mine.py").unlink()
    with raises(UntrustedCodeError, "module_missing", "MAAS_TRUST_REMOTE_CODE=1", "'mine'"):
        load_task(directory)
    monkeypatch.setenv("MAAS_TRUST_REMOTE_CODE", "1")
    assert bundle.load_task(bundle.fetch()).spec.type == "mine:Mine"
    (path,) = (bundle.fetch() / "source").rglob("mine.py")
    path.write_text(CODE + "\n")
    with raises(CorruptError, "digest_mismatch", path.parent):
        bundle.load_task(bundle.fetch())


def test_two_versions_of_a_file_live_side_by_side(here: Path) -> None:
    first = prepare_spec()
    (here / "mine.py").write_text(CODE.replace("SCALE = 1.0", "SCALE = 2.0"))
    second = prepare_spec()

    assert first.task.own_source != second.task.own_source
    for spec, scale in ((first, 1.0), (second, 2.0)):
        assert spec.task.own_source is not None
        assert scale == spec.task.own_source.module("mine").SCALE
    assert type(first.task).__module__ != type(second.task).__module__


def test_specs_reach_processes_that_have_no_such_file(here: Path, tmp_path: Path) -> None:
    spec = prepare_spec()
    trained = TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": "mine:Net", "hidden": 7}})
    content = pickle.dumps((spec.task, trained.network, spec, trained))
    (tmp_path / "pickled").write_bytes(content)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import pickle, sys; task, network, spec, trained = pickle.load(open(sys.argv[1], 'rb')); "
        "print(task.type, network.hidden, spec.task == task, trained.network == network, task.columns)"
    )

    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pickled")],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )

    assert out.stdout.strip() == "mine:Mine 7 True True ('x', 'kind')"


@pytest.mark.parametrize(
    ("text", "path", "code", "named"),
    [
        ("raise KeyError('x')", "mine:Mine", "import_failed", "mine failed: KeyError: 'x'"),
        ("def f(:", "mine:Mine", "invalid_python", "mine.py, line 1: invalid syntax"),
        ("Mine = 3", "mine:Mine", "wrong_class", "maas_ray.tasks.Task"),
        (
            "from maas_ray.tasks.text.generation import TextGeneration as Mine",
            "mine:Mine",
            "defined_elsewhere",
            "maas_ray.tasks.text.generation",
        ),
        (
            "from maas_ray.own import ModuleTask\nclass Mine(ModuleTask):\n    pass",
            "mine:Mine",
            "members_missing",
            "decode, row_loss",
        ),
        (CODE.replace("answers =", "replies ="), "mine:Mine", "members_missing", "features, targets and answers"),
        (CODE + "    weights = [0.3, 0.7]\n", "mine:Mine", "reserved_name", "weights"),
        ("import beside", "mine:Mine", "neighbour_import", "mine.py, line 1: imports the neighbour 'beside'"),
        ("", "nowhere:Mine", "module_missing", "'nowhere'"),
    ],
)
def test_a_wrong_import_path_is_refused_with_its_cause(here: Path, text: str, path: str, code: str, named: str) -> None:
    (here / "mine.py").write_text(text)
    (here / "beside.py").write_text("")

    with raises(SpecError, code, named):
        prepare_spec(path)


def test_a_package_travels_whole_and_imports_itself(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "pack" / "deep").mkdir(parents=True)
    (here / "pack" / "__init__.py").write_text("import pack.deep.b\nNAME = pack.deep.b.VALUE\n")
    (here / "pack" / "a.py").write_text(
        "from pack.deep import b\nfrom . import NAME\nfrom pack import deep\nVALUE = b.VALUE\n"
    )
    (here / "pack" / "deep" / "__init__.py").write_text("")
    (here / "pack" / "deep" / "b.py").write_text("VALUE = 5\n")
    (here / "pack" / "notes.txt").write_text("not code")
    source = SourceCode.find("pack.a")
    source.write(here / "carried")
    (here / "pack" / "deep" / "b.py").write_text("VALUE = 6\n")

    carried = SourceCode.load(here / "carried", source.digest)

    assert carried == source
    assert [path for path, _ in carried.files] == [
        "pack/__init__.py",
        "pack/a.py",
        "pack/deep/__init__.py",
        "pack/deep/b.py",
    ]
    module = carried.module("pack.a")
    assert (module.VALUE, module.NAME) == (5, 5)
    assert SourceCode.find("pack").module("pack.a").VALUE == 6
    assert "pack" not in sys.modules
