"""A converted model with a LoRA adapter added to its weights: created once on each node, and kept beside the model.

OpenVINO GenAI has adapters too, but it accepts none with a request, silently ignores weights that it does not find in
the model, and rounds to the model's 16 bits. Here a weight that is missing is an error, and changed weights are kept
in 32 bits, so the answers are those of PEFT's merged model. Needs no Torch.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from maas_ray.errors import DeploymentError
from maas_ray.serve.engines.lora import Lora
from maas_ray.serve.engines.openvino.conversion import FACTS, MODEL
from maas_ray.storage.disk_cache import node_cache


def with_adapter(model: Path, adapter: Path) -> Path:
    """The converted model in `model` with the adapter in `adapter`, whose directory is named by its digest.

    It stays until this process ends, which is the engine's own.

    Raises:
        DeploymentError: the model does not have the changed weights.
    """
    method = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    name = f"{model.name}+{adapter.name}-{method}"
    return node_cache(model.parent).get(name, lambda partial: _add(model, adapter, partial)).for_ever()


def _add(model: Path, adapter: Path, target: Path) -> None:
    import numpy as np
    import openvino
    from openvino import Type, opset13

    network = openvino.Core().read_model(model / MODEL)
    products: dict[str, Any] = {}
    for node in network.get_ops():
        if node.get_type_name() == "MatMul":  # `__module.model.model.layers.0.mlp.up_proj/aten::linear/MatMul`
            products[node.get_friendly_name().partition("/")[0].removeprefix("__module.model.")] = node
    for module, delta in Lora.load(adapter).deltas(adapter):
        weight = products[module].input_value(1).get_node() if module in products else None
        if weight is not None and weight.get_type_name() == "Convert":  # stored in 16 bits
            weight = weight.input_value(0).get_node()
        if weight is None or weight.get_type_name() != "Constant" or tuple(weight.get_output_shape(0)) != delta.shape:
            raise DeploymentError(
                f"the converted model has no weight of shape {list(delta.shape)} for {module}.",
                code="adapter_does_not_fit",
            )
        changed = opset13.constant(weight.get_data(dtype=np.float32) + delta, dtype=Type.f32)
        changed.set_friendly_name(f"{weight.get_friendly_name()} with adapter")
        products[module].input(1).replace_source_output(changed.output(0))
    openvino.save_model(network, target / MODEL, compress_to_fp16=False)
    for name in ("config.json", FACTS):
        shutil.copy(model / name, target)
