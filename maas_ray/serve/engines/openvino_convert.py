"""A Transformers causal language model as OpenVINO's own: converted once on a node, and kept by digest.

The conversion runs in a process of its own (`python -m maas_ray.serve.engines.openvino_convert`): it takes
Torch, Transformers and several times the model's memory, and a replica should keep none of them. It holds a
lock while it works and gives the directory its name last, so that processes at once convert once and nobody
sees a part. Two ways of saying things hold OpenVINO's transformation together, see `_mask` and `_stateful`.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maas_ray.errors import DeploymentError
from maas_ray.serve.engines.processes import module_command, module_environment

MODEL, FACTS = "openvino_model.xml", "facts.json"
_TOKENIZER, _DETOKENIZER = "openvino_tokenizer.xml", "openvino_detokenizer.xml"
# Those whose tokens were found to be the same as Transformers'. What is not here may convert, and be wrong.
ARCHITECTURES = frozenset(
    {"llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "phi3", "gemma", "gemma3_text", "gpt2", "gpt_neox"}
)
_ROWS, _NEW, _OLD = 2, 3, 4  # the example that is traced: no size is 1, which would be taken for a constant


@dataclass(frozen=True)
class Converted:
    """A converted model.

    Args:
        directory: its files.
        context: longest sequence it takes, tokens.
        end_ids: tokens that end an answer, as the model says.
        token_bytes: keys and values of one token.
        spells_tokens: the tokenizer is there too, by which answers can be held to a JSON schema.
    """

    directory: Path
    context: int
    end_ids: tuple[int, ...]
    token_bytes: int
    spells_tokens: bool

    @classmethod
    def load(cls, directory: Path) -> "Converted":
        """What stands beside the model in its directory."""
        facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
        spells_tokens = (directory / _DETOKENIZER).is_file()
        return cls(directory, facts["context"], tuple(facts["end_ids"]), facts["token_bytes"], spells_tokens)


def refusal(directory: Path) -> str | None:
    """Why the model in a directory cannot be converted. None: it can."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    architecture = config.get("model_type")
    return None if architecture in ARCHITECTURES else f"OpenVINO's engine does not know the architecture {architecture}"


def converted(directory: Path, digest: str, compression: str, *, cache: Path, threads: int) -> Converted:
    """The converted model, made now where this node does not have it yet.

    Args:
        directory: the bundle's files.
        digest: the bundle's digest.
        compression: of the weights: `none`, `int8`, `int4`.
        cache: where converted models are kept.
        threads: to convert with.

    Raises:
        DeploymentError: the conversion failed.
    """
    target = cache / f"{digest}-{compression}-{_method()}"
    if target.is_dir():
        return Converted.load(target)
    command = module_command("maas_ray.serve.engines.openvino_convert", str(directory), str(target), compression)
    # The end that is kept here closes with this process, which ends the conversion too.
    theirs, ours = os.pipe()
    try:
        done = subprocess.run(
            command,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=module_environment() | {"OMP_NUM_THREADS": str(threads)},
        )
    finally:
        os.close(theirs)
        os.close(ours)
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
        raise DeploymentError(f"the conversion for OpenVINO failed (exit status {done.returncode}): {last}")
    return Converted.load(target)


def _method() -> str:
    """Identifies how models are converted: another version's result is not this one's."""
    source = Path(__file__).read_bytes()
    return hashlib.sha256(source + version("openvino").encode()).hexdigest()[:8]


def main() -> None:
    """Convert the model in a directory. Arguments: the directory, the target, the compression."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        made_once(Path(sys.argv[2]), lambda partial: _convert(Path(sys.argv[1]), partial, sys.argv[3]))
    except Exception as error:
        traceback.print_exc()
        print(" ".join(f"{type(error).__name__}: {error}".split())[:500])  # the last line is what a person is told
        sys.exit(1)


def made_once(target: Path, make: Callable[[Path], None]) -> None:
    """Make a directory where it does not exist; of processes at once one makes it, and nobody sees a part."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it however this process ends
        if target.is_dir():
            return
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        make(partial)
        partial.rename(target)


def _end_with_parent() -> None:
    os.read(0, 1)  # standard input closes; `sys.stdin` would hold a lock when this process ends by itself
    os._exit(1)


def _convert(directory: Path, target: Path, compression: str) -> None:
    # Both OpenVINO and NNCF report their use to their makers unless this package is missing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory,
        local_files_only=True,
        dtype="auto",
        attn_implementation="sdpa",
        experts_implementation="batched_mm",
    ).eval()
    config = model.config.get_text_config(decoder=True)
    ends = model.generation_config.eos_token_id
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    facts = {
        "context": config.max_position_embeddings,
        "end_ids": [] if ends is None else [ends] if isinstance(ends, int) else ends,
        "token_bytes": 2 * heads * width * config.num_hidden_layers * torch.float32.itemsize,
    }
    with torch.no_grad():
        converted = _stateful(model, config.num_hidden_layers, heads, width)
    if compression != "none":
        import nncf

        if compression == "int8":
            converted = nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_ASYM)
        else:
            # Where a layer's width is no multiple of the usual 128, smaller groups share a scale.
            smaller = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
            mode = nncf.CompressWeightsMode.INT4_ASYM
            converted = nncf.compress_weights(converted, mode=mode, advanced_parameters=smaller)
    openvino.save_model(converted, target / MODEL, compress_to_fp16=False)
    _convert_tokenizer(directory, target)
    shutil.copy(directory / "config.json", target)
    (target / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _convert_tokenizer(directory: Path, target: Path) -> None:
    """The tokenizer too, where it can be: of it OpenVINO needs what each token spells."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        found = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception:  # whatever it does not know
        traceback.print_exc()
        return
    for part, name in zip(found, (_TOKENIZER, _DETOKENIZER), strict=True):
        openvino.save_model(part, target / name)


def _stateful(model: Any, layers: int, heads: int, width: int) -> Any:
    """The model as OpenVINO GenAI takes it: named inputs, the key-value cache as its state."""
    import numpy as np
    import openvino
    import torch
    from openvino import PartialShape, Type, opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    if model.dtype in (torch.bfloat16, torch.float16):
        # Weights stay in 16 bits, half the memory; what is computed with them is in 32.
        from openvino.frontend.pytorch import patch_model

        patch_model.__dict__["__make_16bit_traceable"](model)
    past = [torch.zeros(_ROWS, heads, _OLD, width) for _ in range(2 * layers)]
    positions = torch.arange(_OLD, _OLD + _NEW).expand(_ROWS, _NEW).contiguous()
    ones = torch.ones(_ROWS, _OLD + _NEW, dtype=torch.long)
    found = openvino.convert_model(_wrapped(model), example_input=(ones[:, :_NEW], ones, positions, *past))

    tensors = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    caches = {f"past_key_values.{tensor}": f"present.{tensor}" for tensor in tensors}
    for port, name in zip(found.inputs, ["input_ids", "attention_mask", "position_ids", *caches], strict=True):
        port.get_tensor().set_names({name})
        node = port.get_node()
        node.set_friendly_name(name)
        if name.startswith("past"):
            node.set_partial_shape(PartialShape([-1, heads, -1, width]))
        else:
            node.set_partial_shape(PartialShape([-1, -1]))
            node.set_element_type(Type.i64)
    for port, name in zip(found.outputs, ["logits", *caches.values()], strict=True):
        port.get_tensor().set_names({name})
    _shift_scores(found)
    found.validate_nodes_and_infer_types()

    # GenAI reorders the rows of a cache by `beam_idx`.
    beam = opset13.parameter(PartialShape([-1]), Type.i32, name="beam_idx")
    beam.output(0).get_tensor().add_names({"beam_idx"})
    found.add_parameters([beam])
    for name in caches:
        port = found.input(name)
        readers = port.get_target_inputs()
        gathered = opset13.gather(port, beam, opset13.constant(0, dtype=np.int64))
        for reader in readers:
            reader.replace_source_output(gathered.output(0))
    found.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(found, caches)

    # Each state begins empty: [rows, heads, 0, width].
    shape = opset13.shape_of(found.input("input_ids"), output_type="i64")
    rows = opset13.gather(shape, opset13.constant(np.array([0])), opset13.constant(0))
    for node in found.get_ops():
        if node.get_type_name() == "ReadValue":
            empty = opset13.concat([rows, opset13.constant(np.array([heads, 0, width]))], axis=0)
            zero = opset13.constant(0.0, dtype=node.get_output_element_type(0))
            node.set_arguments([opset13.broadcast(zero, empty)])
    found.validate_nodes_and_infer_types()
    return found


def _shift_scores(found: Any) -> None:
    """Make the lowest score of each row 4, which changes no probability.

    OpenVINO GenAI takes a penalty off a score that is 0 or more, and adds it to one below: there, what the answer
    holds already would be made likelier. 4, as the presence penalty is taken off first and is at most 2. An addition
    right after the last multiplication is what GenAI allows where it picks the rows that it needs.
    """
    import numpy as np
    from openvino import opset13

    result = found.output("logits").get_node().input(0)
    scores = result.get_source_output()
    lowest = opset13.reduce_min(scores, opset13.constant(np.array([-1])), keep_dims=True)
    shifted = opset13.add(scores, opset13.subtract(opset13.constant(np.float32(4)), lowest))
    result.replace_source_output(shifted.output(0))
    shifted.output(0).get_tensor().set_names({"logits"})


def _wrapped(model: Any) -> Any:
    """The model with its cache as plain arguments and results."""
    import torch
    from transformers.cache_utils import DynamicCache, DynamicLayer

    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any) -> tuple[Any, ...]:
            masks = {
                kind: _mask(input_ids, attention_mask, window if kind == "sliding_attention" else None)
                for kind in sorted(set(kinds))
            }
            cache = DynamicCache()
            for keys, values in zip(past[::2], past[1::2], strict=True):
                layer = DynamicLayer()  # filled by hand: its own first update concatenates with an empty tensor
                layer.dtype, layer.device, layer.keys, layer.values = keys.dtype, keys.device, keys, values
                layer.is_initialized = True
                cache.layers.append(layer)
            output = self.model(
                input_ids=input_ids,
                attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            return output.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))

    return Wrapped().eval()


def _mask(input_ids: Any, attention_mask: Any, window: int | None) -> Any:
    """Which tokens see which, [rows, 1, new, old + new].

    Paged attention replaces the mask by its own. It knows a window by exactly these operations; said in any
    other way it is lost without a word, and every token sees all before it.
    """
    import torch

    rows, new = input_ids.shape
    length = attention_mask.shape[1]
    query = torch.arange(new).reshape(1, 1, -1, 1) + (length - new)
    key = torch.arange(length).reshape(1, 1, 1, -1)
    causal = key <= query
    there = attention_mask[:, None, None, :].to(torch.bool)
    if window is None:
        return torch.bitwise_and(causal, there)
    every = torch.ones_like(causal)
    seen = torch.bitwise_and(every, key > (query + (-window)))
    seen = torch.bitwise_and(seen, causal)
    seen = torch.bitwise_and(every, seen)
    seen = torch.bitwise_and(seen, there)
    seen = seen.expand(rows, 1, new, length)
    lowest = torch.tensor(torch.finfo(torch.float32).min)
    return torch.where(seen, torch.tensor(0.0), lowest)[:, :, :, :length]


if __name__ == "__main__":
    main()
