"""Tasks and networks by import path: found, checked, carried, and run where that is allowed."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from maas_ray.data.spec import PrepareSpec
from maas_ray.errors import (
    CorruptError,
    DataError,
    InvalidError,
    RequestError,
    SpecError,
    UnlearntError,
    UntrustedCodeError,
)
from maas_ray.evaluation.tables import details
from maas_ray.own import Tensor
from maas_ray.registry.bundle import Bundle, BundleMeta, Lineage, publish_bundle
from maas_ray.serve.engines import network
from maas_ray.serve.spec import ServingOptions
from maas_ray.settings import Settings
from maas_ray.tasks import Task, load_task
from maas_ray.tasks.custom_task import check_unchanged
from maas_ray.training.spec import TrainSpec
from maas_ray.user_code import trust
from maas_ray.user_code.source import SourceCode
from tests.support.errors import raises

CODE = """
import torch
from torch import nn
from torch.nn import functional as F

from maas_ray.own import Label, ModuleTask, Tensor

SCALE = 1.0


class Net(nn.Module):
    def __init__(self, task, hidden: int = 4, bias: bool = True):
        super().__init__()
        self.first = nn.Linear(2, hidden, bias=bias)
        self.last = nn.Linear(hidden, len(task.labels["kind"]))

    def forward(self, x):
        return self.last(self.first(x).relu()) * SCALE


class Mine(ModuleTask):
    features = {"x": Tensor("float32", (2,))}
    targets = {"kind": Label()}
    answers = {"kind": Tensor("str"), "scores": Tensor("float32", (2,))}

    def row_loss(self, output, kind):
        return F.cross_entropy(output, kind, reduction="none")

    def decode(self, output):
        return {"kind": [self.labels["kind"][n] for n in output.argmax(-1)], "scores": output.softmax(-1)}
"""
ROWS = [{"x": [0.0, 1.0], "kind": "a"}, {"x": [1.0, 0.0], "kind": "b"}]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `mine.py`; no code is vouched for yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trust, "_vouched", set())
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def _prepare_spec(task: str = "mine:Mine", **more: Any) -> PrepareSpec:
    source = {"format": "jsonl", "path": "rows.jsonl"}
    return PrepareSpec.parse({"dataset": "d", "task": {"type": task, **more}, "sources": [source]})


def _fitted(spec: PrepareSpec) -> Task:
    return _fitted_on(spec, ROWS)


def _fitted_on(spec: PrepareSpec, rows: list[dict[str, Any]]) -> Task:
    parsed = [spec.task.parse_row(row) for row in rows]
    return spec.task.fit(row for row in parsed if row is not None)


def _bundle(task: Task, directory: Path, **arguments: Any) -> Path:
    import torch
    from safetensors.torch import save_file

    network_spec = TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": "mine:Net", **arguments}}).network
    torch.manual_seed(0)
    module = network_spec.build(task)
    directory.mkdir()
    task.save(directory)
    network_spec.write_config(module, task, directory)
    save_file(module.state_dict(), directory / "model.safetensors")
    return directory


def test_a_custom_task_and_network_train_save_and_serve(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    task = _fitted(_prepare_spec())
    directory = _bundle(task, here / "bundle", hidden=8)

    assert sorted(path.name for path in (directory / "source").rglob("*.py")) == ["mine.py"]
    (here / "mine.py").unlink()
    monkeypatch.setenv("MAAS_TRUST_REMOTE_CODE", "1")
    loaded = load_task(directory)
    assert loaded.spec == task.spec
    model, _ = network.load(loaded, directory, ServingOptions())
    (answer,) = network.answers(loaded, model, [loaded.to_inputs(loaded.request(x=[0.5, 0.5]))])
    said = loaded.to_answer(answer).model_dump()
    assert said["kind"] in ("a", "b")
    assert sum(said["scores"]) == pytest.approx(1)

    stored = loaded.encode([loaded.spec.parse_row(row) for row in ROWS])
    batch = loaded.collate(stored)
    outcomes = loaded.outcomes(loaded.load_model(directory), batch)
    assert outcomes["scores"].shape == (2, 2)
    assert outcomes["label"].tolist() == [0, 1]
    assert set(loaded.metrics(outcomes)) >= {"loss", "accuracy", "f1"}
    bf16 = loaded.load_model(directory).to(torch.bfloat16)
    assert loaded.loss(bf16, batch).dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("bool", "False", False),
        ("int64", "-3", -3),
        ("float32", "2.5", 2.5),
        ("float64", Decimal("2.5"), 2.5),
        ("float32", 2, 2.0),
        ("uint8", np.uint8(7), 7),
        ("int32", ["1", "2"], [1, 2]),
        ("float32", np.array([1.5, 2.0]), [1.5, 2.0]),
    ],
)
def test_a_tensor_parses_values_and_texts_that_spell_them(dtype: str, value: Any, expected: Any) -> None:
    found = Tensor(dtype, (2,) if isinstance(expected, list) else ()).parse("x", value)

    assert (found.dtype.name, found.tolist()) == (dtype, expected)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int64", 3.7),
        ("int64", "3.7"),
        ("int64", 1 << 63),
        ("int32", True),
        ("uint8", 300),
        ("uint8", 300.0),
        ("uint8", -1),
        ("bool", 3),
        ("bool", "maybe"),
        ("float32", float("nan")),
        ("float32", "inf"),
        ("float32", 1e300),
        ("float32", True),
        ("float32", [1.0]),
    ],
)
def test_a_value_that_a_cast_would_change_is_refused(here: Path, dtype: str, value: Any) -> None:
    (here / "mine.py").write_text(CODE.replace('"x": Tensor("float32", (2,))', f'"x": Tensor("{dtype}")'))
    task = _fitted_on(_prepare_spec(), [{"x": "1", "kind": "a"}, {"x": "0", "kind": "b"}])

    code = "not_finite" if dtype == "float32" and not isinstance(value, bool | list) else "wrong_type"
    with raises(InvalidError, code, "x", dtype):
        task.spec.parse_row({"x": value, "kind": "a"})
    with pytest.raises((RequestError, ValidationError)):
        task.to_inputs(task.request(x=value))


def test_evaluation_has_a_row_for_each_class_by_its_name(here: Path) -> None:
    rows = [{"x": [0.0, 1.0], "kind": name} for name in ("ant", "bee", "cow")]
    task = _fitted_on(_prepare_spec(), rows)
    outcomes = {"label": np.array([1, 2, 1]), "scores": np.eye(3, dtype=np.float32)[[1, 2, 2]]}  # no ant among them

    found = details(outcomes, task.class_names)

    assert [(row.label, row.support) for row in found.by_label] == [("ant", 0), ("bee", 2), ("cow", 1)]
    assert [row.label for row in details(outcomes, ()).by_label] == ["0", "1", "2"]


def test_an_empty_label_is_missing_and_an_unseen_one_named(here: Path) -> None:
    task = _fitted(_prepare_spec())

    assert task.spec.parse_row({"x": [0.0, 1.0], "kind": ""}) is None
    for name in ("", "c"):
        with raises(UnlearntError, "not_in_training", f"kind {name!r}"):
            task.encode([{"x": np.float32([0, 1]), "kind": name}])


def test_code_of_an_artefact_runs_only_if_it_is_trusted(
    here: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = _bundle(_fitted(_prepare_spec()), here / "bundle")
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
    first = _prepare_spec()
    (here / "mine.py").write_text(CODE.replace("SCALE = 1.0", "SCALE = 2.0"))
    second = _prepare_spec()

    assert first.task.own_source != second.task.own_source
    for spec, scale in ((first, 1.0), (second, 2.0)):
        assert spec.task.own_source is not None
        assert scale == spec.task.own_source.module("mine").SCALE
    assert type(first.task).__module__ != type(second.task).__module__


def test_specs_reach_processes_that_have_no_such_file(here: Path, tmp_path: Path) -> None:
    spec = _prepare_spec()
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


def test_the_arguments_of_a_network_are_checked_against_its_signature(here: Path) -> None:
    def parse(**network: Any) -> TrainSpec:
        return TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": "mine:Net", **network}})

    assert parse().network.document() == {"type": "mine:Net", "hidden": 4, "bias": True}
    with raises(SpecError, "extra_forbidden", "network: hiden", "`hidden`"):
        parse(hiden=3)
    with raises(SpecError, "int_parsing", "network: hidden", "'many'"):
        parse(hidden="many")
    with raises(SpecError, "attribute_missing", "network: type", "mine", "'Nett'"):
        TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": "mine:Nett"}})


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
        _prepare_spec(path)


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


def test_a_task_by_import_path_is_a_task_like_any(here: Path) -> None:
    """A tenth task is one module, which is not registered anywhere."""
    module = Path(sys.modules["maas_ray.tasks.vision.classification"].__file__ or "").read_text()
    own = module.replace('type: Literal["image-classification"] = "image-classification"', "type: str")
    (here / "mine.py").write_text(own)

    spec = _prepare_spec("mine:ImageClassification", image_size=8)
    dark, light = (np.full((8, 8), shade, np.uint8) for shade in (10, 240))
    rows = [spec.task.parse_row({"image": image, "label": name}) for image, name in ((dark, "dark"), (light, "light"))]
    task = spec.task.fit(row for row in rows if row is not None)
    task.save(here)

    assert load_task(here).spec == spec.task
    assert json.loads((here / "task.json").read_text())["source"] == spec.task.own_source.digest  # type: ignore[union-attr]


KERAS = """
import keras


def net(hidden: int = 3):
    entry = keras.Input((2,), name="x")
    normed = keras.layers.BatchNormalization()(entry)
    return keras.Model(entry, keras.layers.Dense(2)(keras.layers.Dense(hidden, activation="relu")(normed)))


def unbuilt(hidden: int = 3):
    return keras.Sequential([keras.layers.Dense(hidden, activation="relu"), keras.layers.Dense(2)])
"""


@pytest.mark.parametrize("name", ["net", "unbuilt"])
def test_a_keras_model_is_a_network(here: Path, name: str) -> None:
    import torch

    (here / "of_keras.py").write_text(KERAS)
    task = _fitted(_prepare_spec())
    spec = TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": f"of_keras:{name}", "hidden": 5}}).network
    torch.manual_seed(3)
    again = spec.build(task)
    torch.manual_seed(3)
    module = spec.build(task)

    assert list(module.state_dict()) == list(again.state_dict())
    for value, other in zip(module.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other)
    torch.manual_seed(4)
    again = spec.build(task)
    assert {key: value.shape for key, value in spec.skeleton(task).state_dict().items()} == {
        key: value.shape for key, value in module.state_dict().items()
    }
    again.load_state_dict(module.state_dict())
    batch = task.collate(task.encode([task.spec.parse_row(row) for row in ROWS]))
    torch.testing.assert_close(again.eval()(x=batch["x"]), module.eval()(x=batch["x"]))
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    before = float(task.loss(module, batch).detach())
    for _ in range(30):
        loss = task.loss(module.train(), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(task.loss(module.eval(), batch).detach()) < before


def test_what_keras_counts_in_training_is_kept_in_any_precision(here: Path) -> None:
    import torch

    (here / "of_keras.py").write_text(KERAS)
    task = _fitted(_prepare_spec())
    spec = TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": "of_keras:net"}}).network
    module = spec.build(task).to(torch.bfloat16).train()
    mean = next(name for name in module.state_dict() if name.endswith("moving_mean"))
    for _ in range(400):
        module(x=torch.tensor([[3.0, -1.0], [5.0, -3.0]], dtype=torch.bfloat16))

    assert module.state_dict()[mean].dtype == torch.bfloat16
    assert module.state_dict()[mean].tolist() == pytest.approx([4, -2], rel=0.3)


def test_a_tenth_task_is_one_file(tmp_path: Path) -> None:
    """A module put beside the others is found, and nothing else is touched."""
    import maas_ray

    package = Path(maas_ray.__file__).parent
    shutil.copytree(package, tmp_path / "maas_ray", ignore=shutil.ignore_patterns("__pycache__"))
    vision = package / "tasks" / "vision"
    module = (vision / "networks.py").read_text() + (vision / "classification.py").read_text()
    module = module.replace("from maas_ray.tasks.vision.networks import Cnn, ResNet\n", "")
    module = re.sub(r'"(image-classification|cnn|resnet)"', r'"tenth-\1"', module)
    (tmp_path / "maas_ray" / "tasks" / "tenth.py").write_text(module)
    (tmp_path / "walk.py").write_text(WALK)

    out = subprocess.run(
        [sys.executable, "walk.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert out.stdout.split() == ["tenth-image-classification", "dark"], out.stderr


WALK = """
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from maas_ray.data.spec import PrepareSpec
from maas_ray.serve.engines import network
from maas_ray.serve.spec import ServingOptions
from maas_ray.tasks import find_task, load_task
from maas_ray.training.spec import TrainSpec

source = {"format": "image-folder", "path": "x"}
spec = PrepareSpec.parse({"dataset": "d", "task": {"type": "tenth-image-classification"}, "sources": [source]})
images = {"dark": np.full((8, 8), 5, np.uint8), "light": np.full((8, 8), 250, np.uint8)}
rows = [spec.task.parse_row({"image": image, "label": name}) for name, image in images.items()]
task = spec.task.fit(rows)
chosen = TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": "tenth-cnn", "channels": [4]}}).network
assert isinstance(chosen, find_task("tenth-image-classification").networks)
module = chosen.build(task)
optimizer = torch.optim.Adam(module.parameters(), 0.01)
for _ in range(40):
    optimizer.zero_grad()
    task.loss(module, task.collate(task.encode(rows))).backward()
    optimizer.step()
bundle = Path("bundle")
bundle.mkdir()
task.save(bundle)
chosen.write_config(module, task, bundle)
save_file(module.state_dict(), bundle / "model.safetensors")
served = load_task(bundle)
model, _ = network.load(served, bundle, ServingOptions())
(answer,) = network.answers(served, model, [served.to_inputs(served.request(image=images["dark"].tolist()))])
print(served.spec.type, served.to_answer(answer).label)
"""
