#!/usr/bin/env bash
# DeepSpeed 0.19.8: a universal checkpoint under ZeRO 3 is loaded with the first group's settings for all groups, and
#   with one count of steps for all.
# Expected: each parameter group has the weight decay, the learning rate and the count that it was saved with.
# Effect: after resuming on another number of workers, biases decay, rates of groups are lost, and the count rises
#   once for each group in a step, in silence. `training/checkpoints/loading.py` puts all of it back.
# Needs: deepspeed==0.19.8 torch==2.13.0 numpy==2.4.6
# Seen: saved ([0.5, 0.0], [1, 1]); loaded, after one step ([0.5, 0.5], [3, 3])
set -euo pipefail
source "$(dirname "$0")/environment.sh"
cat >probe.py <<'PY'
import os
import sys

os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
import deepspeed
import torch
from argparse import Namespace
from deepspeed.checkpoint.ds_to_universal import main

torch.distributed.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store", rank=0, world_size=1)


def engine_of(universal):
    config = {
        "train_batch_size": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.1, "torch_adam": True}},
        "zero_optimization": {"stage": 3},
        "checkpoint": {"load_universal": universal},
    }
    module = torch.nn.Linear(4, 2)
    groups = [{"params": [module.weight], "weight_decay": 0.5}, {"params": [module.bias], "weight_decay": 0.0}]
    return deepspeed.initialize(model=module, model_parameters=groups, config=config, dist_init_required=False)[0]


def train(engine):
    engine.backward(engine(torch.ones(1, 4)).sum())
    engine.step()


def seen(engine):
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    return decays, [int(state["step"]) for state in engine.optimizer.optimizer.state.values()]


engine = engine_of(False)
train(engine)
saved = seen(engine)
engine.save_checkpoint("saved", tag="state")
options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
main(Namespace(input_folder="saved/state", output_folder="saved/universal", inject_missing_state=True, **options))
engine = engine_of(True)
engine.load_checkpoint("saved", tag="universal")
train(engine)
print(f"saved {saved}; loaded, after one step {seen(engine)}")
sys.exit((saved, seen(engine)) != (([0.5, 0.0], [1, 1]), ([0.5, 0.5], [3, 3])))
PY
python probe.py 2>&1 | tail -1
