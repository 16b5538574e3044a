"""A task that someone adds to the package is one file."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path


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
