"""From a checkpoint to a directory that Transformers alone loads, one file at a time."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from maas_ray.errors import TrainingError
from maas_ray.tasks import NetworkSpec, Task
from maas_ray.tasks.text.generation import Pretrained
from maas_ray.tasks.text.networks import Llama
from maas_ray.tasks.vision.networks import Cnn
from maas_ray.training import export as exporting
from maas_ray.training.checkpoints.weights import consolidated
from maas_ray.training.export import export
from tests.support.bundles import image_task, save_bundle, text_task
from tests.support.checkpoints import save_checkpoint
from tests.support.errors import raises

STAGES = pytest.mark.parametrize("stage", [0, 1, 3])


def run_export(saved: Path, task: Task, network: NetworkSpec, directory: Path) -> Path:
    directory.mkdir()
    export(saved, SimpleNamespace(task=task), network, directory)  # type: ignore[arg-type]
    return directory


@STAGES
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_alone_loads_what_was_trained(
    tmp_path: Path, stage: int, tied: bool, monkeypatch: pytest.MonkeyPatch
):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(exporting, "SHARD_SIZE", "40KB")
    task, network = text_task(), Llama(hidden_size=32, layers=2, heads=2, tie_embeddings=tied)
    module = network.build(task)
    saved = save_checkpoint(module, tmp_path / "saved", stage)
    directory = run_export(saved, task, network, tmp_path / "out")
    assert len(list(directory.glob("*.safetensors"))) > 1
    loaded, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name

    again = run_export(saved, task, network, tmp_path / "again")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }


@pytest.mark.parametrize("stage", [1, 3])
def test_consolidated_weights_are_those_that_deepspeed_reads(tmp_path: Path, stage: int):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    module = Llama(hidden_size=24, layers=1, heads=2).build(text_task())
    saved = save_checkpoint(module, tmp_path, stage)
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(saved), tag="state")
    ours = consolidated(saved)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name].contiguous(), value), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("key", ["fp32_groups", "fp32_groups_flat"])
def test_without_zero_in_16_bits_the_weights_are_the_optimizers_in_fp32(tmp_path: Path, key: str, tied: bool):
    module = Llama(hidden_size=24, layers=1, heads=2, tie_embeddings=tied).build(text_task())
    whole = {name: value.clone() for name, value in module.state_dict().items()}
    masters = [parameter.detach().clone() for parameter in module.parameters()]
    saved = save_checkpoint(module.bfloat16(), tmp_path, 0)
    path = saved / "state" / "mp_rank_00_model_states.pt"
    groups = [masters] if key == "fp32_groups" else [torch.cat([value.flatten() for value in masters])]
    torch.save(torch.load(path, weights_only=False) | {"optimizer": {key: groups}}, path)
    found = consolidated(saved)
    for name in whole.keys() - ({"lm_head.weight"} if tied else set()):
        assert torch.equal(found[name].contiguous(), whole[name]), name
    torch.save(torch.load(path, weights_only=False) | {"optimizer": {key: [groups[0][:-1]]}}, path)
    with raises(TrainingError, "checkpoint_unreadable", saved):
        consolidated(saved)


@STAGES
def test_a_network_with_buffers_of_its_own_loads(tmp_path: Path, stage: int):
    task, network = image_task(), Cnn(channels=(8,), hidden_size=8)
    module = network.build(task).eval()
    directory = run_export(save_checkpoint(module, tmp_path / "saved", stage), task, network, tmp_path / "out")
    pixels = torch.randint(0, 255, (2, *task.shape), dtype=torch.uint8)  # type: ignore[attr-defined]
    with torch.inference_mode():
        assert torch.equal(task.load_model(directory)(pixel_values=pixels), module(pixel_values=pixels))


@STAGES
def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path: Path, stage: int):
    task = image_task()
    saved = save_checkpoint(Cnn(channels=(8,), hidden_size=8).build(task), tmp_path / "saved", stage)
    with raises(TrainingError, "network_differs", saved, "features.4.weight is missing"):
        run_export(saved, task, Cnn(channels=(8, 8), hidden_size=8), tmp_path / "more")
    larger = save_checkpoint(Cnn(channels=(8, 8), hidden_size=8).build(task), tmp_path / "larger", stage)
    with raises(TrainingError, "network_differs", larger, "features.4.weight is not of this network"):
        run_export(larger, task, Cnn(channels=(8,), hidden_size=8), tmp_path / "fewer")
    with raises(TrainingError, "network_differs", saved, "classifier.1.weight", [8, 128], [9, 128]):
        run_export(saved, task, Cnn(channels=(8,), hidden_size=9), tmp_path / "wider")


def test_a_checkpoint_that_lacks_a_rank_is_refused(tmp_path: Path):
    task, network = image_task(), Cnn(channels=(8,), hidden_size=8)
    saved = save_checkpoint(network.build(task), tmp_path / "saved", 1)
    (saved / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with raises(TrainingError, "checkpoint_unreadable", "Expected 3 of"):  # DeepSpeed's own words
        run_export(saved, task, network, tmp_path / "out")


def test_a_skeleton_carries_the_config_of_the_model_it_stands_for(tmp_path: Path):
    task = text_task()
    directory = save_bundle(task, tmp_path / "model")
    (directory / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.5, "do_sample": true}')
    network = Pretrained(path=str(directory))
    written = []
    for name, module in (("built", network.build(task)), ("skeleton", network.skeleton(task))):
        (tmp_path / name).mkdir()
        network.write_config(module, task, tmp_path / name)
        written.append({path.name: path.read_text() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert "0.5" in written[1]["generation_config.json"]
    assert {value.device.type for value in module.state_dict().values()} == {"meta"}


MEASURE = """
import re, sys
from pathlib import Path
import deepspeed.utils.zero_to_fp32, huggingface_hub, safetensors.torch, torch.distributed.tensor
from maas_ray.training.export import write_weights

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

skeleton = {f"{n}.weight": torch.empty(1024, 1024, device="meta") for n in range(32)}
before = peak()
for saved in sys.argv[2:]:
    write_weights(Path(saved), skeleton, set(), Path(sys.argv[1]), "8MB")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_export_needs_memory_for_one_file_not_for_the_model(tmp_path: Path):
    module = torch.nn.ModuleList(torch.nn.Linear(1024, 1024, bias=False) for _ in range(32))  # 128 MiB
    checkpoints = [str(save_checkpoint(module, tmp_path / str(stage), stage)) for stage in (0, 1, 3)]
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path / "out"), *checkpoints]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 32
    assert int(done.stdout.splitlines()[-1]) / 1024 < 64
