"""The code, specs and commands of docs/own-model.md, and the checks between user code and a server."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maas_ray import DeploySpec, PredictSpec, PrepareSpec, TrainSpec, deploy, diff, predict, prepare, train, undeploy
from maas_ray.cli import app
from maas_ray.errors import DataError, PreflightError, UntrustedCodeError
from maas_ray.registry.bundle import open_bundle
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.user_code import trust
from tests.support import ROOT
from tests.support.errors import raises

pytestmark = pytest.mark.usefixtures("cluster")

TUTORIAL = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)


def _run(command: str) -> None:
    assert command.startswith("maas ")
    done = CliRunner().invoke(app, command.split()[1:])
    assert done.exit_code == 0, (command, done.output, done.exception)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory as the tutorial describes it."""
    from sklearn.datasets import load_wine

    directory = tmp_path_factory.mktemp("own")
    (code,), (prepared, trained) = _blocks("python"), _blocks("yaml")
    assert len([line for line in code.splitlines() if line.strip()]) < 40
    (directory / "my_wine.py").write_text(code)
    (directory / "prepare.yaml").write_text(prepared)
    (directory / "train.yaml").write_text(trained)
    data, names = load_wine(), ("barolo", "grignolino", "barbera")
    rows = [{"measures": x.tolist(), "kind": names[y]} for x, y in zip(data.data, data.target, strict=True)]
    (directory / "wine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_the_tutorial_from_code_to_answer(here: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    commands = [line for block in _blocks("sh") for line in block.splitlines()]
    first = [line for line in commands if line.startswith(("maas prepare", "maas train"))]
    # Preparing and training with one's own code needs no permission.
    monkeypatch.setenv("MAAS_TRUST_REMOTE_CODE", "0")
    monkeypatch.setattr(trust, "_vouched", set())
    for command in first:
        _run(command)
    version = Registry(settings).resolve("own-wine@champion")
    assert version.metrics["validation/accuracy"] > 0.8

    allowance, deployed = [line for line in commands if line not in first][:2]
    with raises(UntrustedCodeError, "untrusted_code", "MAAS_TRUST_REMOTE_CODE=1"):
        deploy(DeploySpec(version="own-wine@champion"), settings=settings)
    assert not [one for one in diff(settings=settings) if one.endpoint == "own-wine"]
    assert allowance == "export MAAS_TRUST_REMOTE_CODE=1"
    monkeypatch.setenv("MAAS_TRUST_REMOTE_CODE", "1")
    (here / "my_wine.py").rename(here / "my_wine.away")  # the server reads the code from the bundle alone
    try:
        _run(deployed)
        (asked,) = re.findall(r"^curl (\S+) -d '(.*)'$", "\n".join(commands), re.MULTILINE)
        url = asked[0].replace(":8000", f":{settings.http_port}")
        with urllib.request.urlopen(urllib.request.Request(url, asked[1].encode())) as answer:
            said = json.load(answer)
        assert (said["model"], said["kind"]) == ("own-wine", "barolo")
        assert 0.5 < said["certainty"] <= 1

        done = predict(
            PredictSpec(version="own-wine@champion", input=str(here / "wine.jsonl"), output=str(here / "answers"))
        )
        assert (done.rows, done.quarantined) == (178, 0)
        import pyarrow.parquet as pq

        (part,) = (here / "answers").glob("part-*.parquet")
        rows = pq.read_table(part).to_pylist()
        assert sum(row["kind"] == row["input_kind"] for row in rows) > 0.8 * len(rows)
    finally:
        (here / "my_wine.away").rename(here / "my_wine.py")
        undeploy("own-wine", settings=settings)


def test_training_on_a_dataset_of_other_code_is_refused(
    here: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my_wine.py", "wine.jsonl", "prepare.yaml", "train.yaml"):
        (tmp_path / name).write_text((here / name).read_text())
    dataset = prepare(PrepareSpec.from_yaml("prepare.yaml", ["dataset=changed-wine"]), settings=settings)
    code = (tmp_path / "my_wine.py").read_text()
    (tmp_path / "my_wine.py").write_text(code.replace("hidden: int = 32", "hidden: int = 16"))

    spec = TrainSpec.from_yaml("train.yaml", ["dataset=changed-wine", "model=changed-wine"])
    with raises(DataError, "code_changed", "my_wine:Wine", "(my_wine.py)"):
        train(spec, settings=settings)
    again = prepare(PrepareSpec.from_yaml("prepare.yaml", ["dataset=changed-wine"]), settings=settings)
    assert again.fingerprint != dataset.fingerprint


FRAGILE = """
import torch
import torch.nn.functional as F
from torch import nn

from maas_ray.own import Label, ModuleTask, Tensor


class Net(nn.Module):
    def __init__(self, task, hidden: int = 32):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(13, hidden), nn.Tanh()).requires_grad_(False)
        self.head = nn.Linear(hidden, len(task.labels["kind"]))

    def forward(self, measures):
        marked = measures[:, :1] > 1e6
        output = self.head(self.backbone((measures.clamp(max=1e4) + 1).log()))
        # The derivative of a square root at 0 is infinite, and 0 times it is NaN.
        return output + torch.where(marked, torch.sqrt(torch.where(marked, output * 0.0, 1.0)), 0.0)


class Noisy(Net):
    def __init__(self, task):
        super().__init__(task)
        self.shift = 10 * torch.rand(13)  # neither a parameter nor a buffer, so it is not saved

    def forward(self, measures):
        return super().forward(measures + self.shift.to(measures.dtype))


class Wine(ModuleTask):
    features = {"measures": Tensor("float32", (13,))}
    targets = {"kind": Label()}
    answers = {"kind": Tensor("str")}

    def row_loss(self, output, kind):
        return F.cross_entropy(output, kind, reduction="none")

    def decode(self, output):
        return {"kind": [self.labels["kind"][index] for index in output.argmax(-1)]}
"""


@pytest.mark.slow
def test_a_frozen_backbone_is_published_as_built_and_a_step_that_was_left_out_is_told(
    here: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import load_file

    monkeypatch.chdir(tmp_path)
    (tmp_path / "fragile_wine.py").write_text(FRAGILE)
    rows = [json.loads(line) for line in (here / "wine.jsonl").read_text().splitlines()]
    rows += [{"measures": [1e7, *range(12)], "kind": "barolo", "split": "train"}]
    for number, row in enumerate(rows):
        row.setdefault("split", "validation" if number % 5 == 0 else "train")
    (tmp_path / "wine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = {
        "dataset": "fragile-wine",
        "task": {"type": "fragile_wine:Wine"},
        "sources": [{"path": "wine.jsonl", "format": "jsonl"}],
        "splits": {"column": "split"},
    }
    dataset = prepare(PrepareSpec.parse(prepared), settings=settings)
    trained = {
        "dataset": "fragile-wine",
        "model": "fragile-wine",
        "network": {"type": "fragile_wine:Net"},
        "batch_size": 8,
        "cpus_per_worker": 0.5,
        "checkpoint": {"every_steps": 6, "keep": 10},
        "validation": {"every_steps": 4, "place": "workers", "max_rows": 5},
    }
    # A network whose version would answer otherwise is refused before the first step.
    noisy = TrainSpec.parse(trained | {"model": "noisy-wine", "network": {"type": "fragile_wine:Noisy"}})
    with raises(PreflightError, "rehearsal_failed", "`loss`"):
        train(noisy, settings=settings)
    left = (Path(settings.storage) / "runs" / "noisy-wine").glob("*/*")
    assert not [path for path in left if path.name.startswith(("step-", "rehearsal-"))]

    spec = TrainSpec.parse(trained)
    version = train(spec, settings=settings)
    assert not list((Path(settings.storage) / "runs" / "fragile-wine").glob("*/rehearsal-*"))
    directory = open_bundle(version.uri).fetch()
    torch.manual_seed(0)
    built = spec.network.build(dataset.task).state_dict()
    weights = load_file(directory / "model.safetensors")
    for name, value in weights.items():
        assert torch.equal(value, built[name]) == name.startswith("backbone."), name

    told = "8 rows of 1 step were left out of the training"
    assert told in (directory / "README.md").read_text()
    said = capsys.readouterr().out
    assert told in said
    assert f"{len(rows) - 36 - 8} rows trained on" in said
    client = Registry(settings).client
    (left_out,) = client.get_metric_history(version.lineage.run_id, "train/left_out_steps")
    assert left_out.value == 1
    assert client.get_metric_history(version.lineage.run_id, "train/learning_rate")[0].value > 0

    positions = {}
    for path in (Path(settings.storage) / "runs" / "fragile-wine").glob("*/step-*/position.json"):
        position = json.loads(path.read_text())
        positions[position["step"]] = position
    assert sorted(positions) == [6, 12, 18]
    assert not positions[6].get("metrics"), "measured at step 4, saved at step 6"
    assert positions[12]["metrics"]["validation/loss"] == positions[12]["comparable_loss"]
    last = positions[18]  # measured on all 36 rows, compared by the first 5
    assert last["metrics"]["validation/loss"] != last["comparable_loss"]


KERAS = """
import keras
from tests.support import ROOT


def net(hidden: int = 16):
    entry = keras.Input((13,))
    inner = keras.layers.Dense(hidden, activation="relu")(keras.ops.log(entry + 1))
    return keras.Model(entry, keras.layers.Dense(3)(inner))
"""


def test_a_keras_model_is_trained_by_deepspeed_and_answers(
    here: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_wine.py").write_text((here / "my_wine.py").read_text())
    (tmp_path / "my_keras.py").write_text(KERAS)
    (tmp_path / "wine.jsonl").write_text((here / "wine.jsonl").read_text())
    prepare(PrepareSpec.from_yaml(here / "prepare.yaml", ["dataset=keras-wine"]), settings=settings)

    spec = TrainSpec.from_yaml(
        here / "train.yaml", ["dataset=keras-wine", "model=keras-wine", 'network={type: "my_keras:net", hidden: 32}']
    )
    version = train(spec, settings=settings)

    assert version.metrics["validation/accuracy"] > 0.8
    bundle = version.open()
    assert len({entry.path.split("/")[1] for entry in bundle.artifact.files if entry.path.startswith("source/")}) == 2
    directory = bundle.fetch()
    task = bundle.load_task(directory)
    assert sum(len(one) for one in task.load_model(directory).state_dict().values()) == 13 + 32 + 32 + 3
