"""The identity of a run: everything that decides its result changes it, and nothing else does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import ConflictError, SpecError
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.spec import digest_of
from maas_ray.training.checkpoints.position import Position, RowOrder
from maas_ray.training.checkpoints.snapshot import Snapshot
from maas_ray.training.preflight import make_plan
from maas_ray.training.runs import identity as identities
from maas_ray.training.runs import record
from maas_ray.training.runs.identity import couples_rows, identity_of
from maas_ray.training.runs.record import RunKey, open_run
from maas_ray.training.spec import TrainSpec
from tests.support import bundles
from tests.support.datasets import digits_dataset
from tests.support.errors import raises


def spec_of(**changes: object) -> TrainSpec:
    network = {"type": "llama", "hidden_size": 64, "heads": 2}
    return TrainSpec.parse({"dataset": "d", "model": "m", "network": network} | changes)


def same(*changes: dict[str, Any], **arguments: Any) -> bool:
    return len({identity_of(spec_of(**change), "fp", **arguments) for change in changes}) == 1


# --- validation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decides", [{"early_stopping": {"patience": 2}}, {"checkpoint": {"select": "best"}}])
def test_the_interval_of_validations_counts_if_it_decides(decides: dict[str, Any]) -> None:
    def every(steps: int) -> dict[str, Any]:
        return decides | {"checkpoint": decides.get("checkpoint", {}) | {"every_steps": steps}}

    assert not same(every(100), every(200))
    fixed = {"validation": {"every_steps": 400}}
    assert same(every(100) | fixed, every(200) | fixed)
    assert same({"checkpoint": {"every_steps": 100}}, {"checkpoint": {"every_steps": 200}})


# --- the micro batch -------------------------------------------------------------------------------


def test_the_micro_batch_counts_if_rows_of_a_pass_are_coupled() -> None:
    for change in ({"micro_batch_size": 2}, {"batch_size": 32, "workers": 8}):
        assert same({}, change)
        assert not same({}, change, couples_rows=True)
    assert same({}, {"workers": 2}, couples_rows=True)  # 8 rows a pass either way
    assert same({"workers": [1, 2]}, {"workers": 2}, couples_rows=True)


def test_negatives_of_a_pass_and_batch_normalisation_couple_rows(
    tmp_path: Path, own_module: Callable[..., Any]
) -> None:
    from maas_ray.tasks.text.embeddings import FeatureExtraction

    task = bundles.image_task()
    assert FeatureExtraction.couples_rows
    assert not couples_rows(spec_of(network={"type": "cnn"}).network, task)
    body = (
        "import torch\n"
        "def plain():\n    return torch.nn.Sequential(torch.nn.Linear(2, 2))\n"
        "def normalised():\n    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))\n"
    )
    own_module("coupled_nets", body)
    assert not couples_rows(spec_of(network={"type": "coupled_nets:plain"}).network, task)
    assert couples_rows(spec_of(network={"type": "coupled_nets:normalised"}).network, task)
    for name, coupled in (("norm.running_mean", True), ("norm.weight", False)):
        given = pretrained(tmp_path / name, {name: np.zeros(2, np.float32)})
        assert couples_rows(spec_of(network={"type": "pretrained", "path": str(given)}).network, task) is coupled


# --- files -----------------------------------------------------------------------------------------


def pretrained(directory: Path, weights: dict[str, np.ndarray]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    save_file(weights, directory / "model.safetensors")
    return directory


def test_a_base_model_is_its_configuration_and_weights_not_its_place(tmp_path: Path) -> None:
    def identity(directory: Path) -> str:
        return identity_of(spec_of(network={"type": "pretrained", "path": str(directory)}), "fp")

    first = pretrained(tmp_path / "a", {"w": np.zeros(2, np.float32)})
    before = identity(first)
    assert identity(pretrained(tmp_path / "b", {"w": np.zeros(2, np.float32)})) == before
    (first / "README.md").write_text("a model")
    assert identity(first) == before
    for name, content in (("config.json", '{"a": 1}'), ("generation_config.json", "{}")):
        (first / name).write_text(content)
        assert identity(first) != before, name
        before = identity(first)
    save_file({"w": np.ones(2, np.float32)}, first / "model.safetensors")
    assert identity(first) != before


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def write(name: str, body: str) -> None:
        (tmp_path / f"{name}.py").write_text(body)
        monkeypatch.syspath_prepend(str(tmp_path))

    return write


def test_files_that_a_network_of_ones_own_is_given_count(tmp_path: Path, own_module: Callable[..., Any]) -> None:
    own_module("file_nets", "def net(weights: str = '', table: dict = {}):\n    raise NotImplementedError\n")

    def identity(**fields: object) -> str:
        return identity_of(spec_of(network={"type": "file_nets:net", **fields}), "fp")

    path = tmp_path / "backbone.safetensors"
    unnamed = identity()
    for fields in ({"weights": str(path)}, {"table": {"rows": [str(path)]}}, {"weights": str(tmp_path)}):
        path.unlink(missing_ok=True)
        path.write_bytes(b"one")
        one = identity(**fields)
        path.write_bytes(b"two")
        assert len({one, identity(**fields), unnamed}) == 3, fields


# --- runs that are recorded ------------------------------------------------------------------------


@pytest.fixture
def dataset(settings: Settings) -> PreparedDataset:
    return digits_dataset(settings, "digits")


def digits(dataset: PreparedDataset, **changes: object) -> TrainSpec:
    return TrainSpec.parse({"dataset": dataset.uri, "model": "m", "network": {"type": "cnn"}} | changes)


def test_another_select_is_the_same_run_if_it_was_validated_at_the_same_steps(
    settings: Settings, dataset: PreparedDataset
) -> None:
    def opened(select: str, every: int) -> str:
        spec = digits(dataset, checkpoint={"select": select, "every_steps": every})
        run = open_run(spec, dataset, settings)
        run.note_start(100)
        return run.run_id

    last = opened("last", 50)
    assert opened("best", 50) == last
    assert opened("best", 20) != last
    assert opened("last", 20) == last, "the interval does not decide about the last checkpoint"
    best = opened("best", 10)
    assert opened("best", 10) == best
    assert best != last


@pytest.mark.parametrize("name", [None, "it"])
def test_a_run_that_version_0_2_began_is_found_and_goes_on_in_one_group(
    settings: Settings, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    spec = digits(dataset, run=name)
    document = spec.model_dump(mode="json", exclude=identities._NOT_COMPUTED) | {"network": spec.network.identity()}
    del document["validation"]["max_rows_at_end"]  # it had no such field
    old = digest_of({"spec": document, "batch_size": 32, "dataset": dataset.fingerprint})  # as version 0.2 computed it
    with monkeypatch.context() as before:
        before.setattr(record, "identity_of", lambda *_, **__: old)
        begun = open_run(spec, dataset, settings)
    assert begun.identity == old
    assert old != identity_of(spec, dataset.fingerprint)
    again = open_run(spec, dataset, settings)
    assert (again.run_id, again.name, again.identity) == (begun.run_id, begun.name, old)
    with raises(SpecError, "run_differs", begun.name):
        open_run(digits(dataset, run=begun.name, seed=1), dataset, settings)


def test_a_changed_base_model_under_the_same_name_is_refused(settings: Settings, dataset: PreparedDataset) -> None:
    open_run(digits(dataset, run="it"), dataset, settings)
    with raises(SpecError, "run_differs", "'it'"):
        open_run(digits(dataset, run="it", seed=1), dataset, settings)


def test_a_deleted_experiment_is_named(settings: Settings, dataset: PreparedDataset) -> None:
    open_run(digits(dataset), dataset, settings)
    client = Registry(settings).client
    client.delete_experiment(client.get_experiment_by_name("m").experiment_id)
    with raises(ConflictError, "experiment_deleted", "'m'"):
        open_run(digits(dataset), dataset, settings)


def save(home: str, position: Position) -> None:
    import tempfile

    Snapshot(0, position, {}, tempfile.TemporaryDirectory()).write(f"{home}/step-{position.step:08d}-abc123")


def test_the_newest_checkpoint_decides_the_lanes_if_mlflow_lost_the_run(
    settings: Settings, dataset: PreparedDataset
) -> None:
    spec = digits(dataset, run="it", workers=2)
    run = open_run(spec, dataset, settings)
    assert run.lanes == 2
    order = RowOrder(dataset=dataset.fingerprint, batch_size=32, lanes=2, epochs=1, seed=0)
    save(run.home, Position(step=5, workers=1, order=order, identity=run.identity))
    run.registry.client.delete_run(run.run_id)

    again = open_run(digits(dataset, run="it", workers=4), dataset, settings)
    assert (again.run_id != run.run_id, again.lanes) == (True, 2)
    again.registry.client.delete_run(again.run_id)
    for change in ({"batch_size": 16}, {"epochs": 2}, {"seed": 1}, {"learning_rate": 0.5}):
        with raises(SpecError, "run_differs", "'it'"):
            open_run(digits(dataset, run="it", **change), dataset, settings)


def test_the_ledger_proves_the_lanes_of_an_old_checkpoint(settings: Settings, dataset: PreparedDataset) -> None:
    spec = digits(dataset, run="it", workers=4)
    run = open_run(spec, dataset, settings)
    ledger = make_plan(spec, dataset, lanes=2).ledger_at(7)  # begun on 2 workers
    save(run.home, Position(step=7, workers=1, rows=ledger.rows, digest=ledger.digest))
    run.registry.client.delete_run(run.run_id)
    assert open_run(spec, dataset, settings).lanes == 2

    other = digits(dataset, run="other", workers=4)
    save(run.home.replace("/it", "/other"), Position(step=7, workers=1, rows=ledger.rows, digest=1))
    with raises(SpecError, "run_differs", "'other'"):
        open_run(other, dataset, settings)


def test_a_position_without_an_order_is_read() -> None:
    old = json.dumps({"step": 5, "workers": 2, "rows": 160, "digest": 7})  # as version 0.2 wrote it
    position = Position.parse(json.loads(old))
    assert (position.order, position.spares) == (None, False)


def test_any_field_name_becomes_a_parameter_of_mlflow(settings: Settings, dataset: PreparedDataset) -> None:
    odd = {"zero_optimization": {"stage": 1}, "optimizer": {"type": "AdamW", "params": {"größe,(1)": 1, "x" * 300: 2}}}
    run = open_run(digits(dataset).model_copy(update={"deepspeed": odd}), dataset, settings)
    logged = run.registry.client.get_run(run.run_id).data.params
    assert logged["deepspeed.optimizer.params.größe__1_"] == "1"


def test_the_key_of_a_run_has_both_selects(dataset: PreparedDataset) -> None:
    last = RunKey.of(digits(dataset), dataset)
    best = RunKey.of(digits(dataset, checkpoint={"select": "best"}), dataset)
    assert last.identity != best.identity
    assert last.identities == best.identities == {*last.equal, *best.equal}
    assert (last.equal, last.selected) == (best.selected, best.equal)


def test_an_experiment_that_another_process_creates_meanwhile_is_used(
    settings: Settings, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, looked = record.active_experiment, []

    def too_early(registry: Registry, model: str) -> Any:
        looked.append(model)
        if len(looked) == 2:  # when it is to be created
            registry.client.create_experiment(model)
            return None
        return look_up(registry, model)

    monkeypatch.setattr(record, "active_experiment", too_early)
    run = open_run(digits(dataset), dataset, settings)
    experiment = run.registry.client.get_experiment_by_name("m")
    assert run.registry.client.get_run(run.run_id).info.experiment_id == experiment.experiment_id
    assert len(looked) == 3
