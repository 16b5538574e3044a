"""Conversion of a Transformers causal language model to OpenVINO, once on each node, cached by digest.

The conversion runs in a process of its own (`python -m maas_ray.serve.engines.openvino.conversion`): it needs Torch,
Transformers and several times the model's memory, and a replica should keep none of them. The cache has a lock and
renames the directory last, so concurrent processes convert a model once, and nobody sees a partial result.
OpenVINO's own transformations recognise only exact patterns of operations, see `_mask` and `_stateful`.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maas_ray.errors import DeploymentError
from maas_ray.serve.engines.processes import module_command, module_environment
from maas_ray.storage.disk_cache import Held, node_cache

MODEL, FACTS = "openvino_model.xml", "facts.json"
TRIAL_MODEL = "trial"
"""Directory of a tiny network with as many tokens, on which `grammars` tries JSON schemas."""
_TOKENIZER, _DETOKENIZER = "openvino_tokenizer.xml", "openvino_detokenizer.xml"
# Architectures whose tokens were compared with those of Transformers. Others may convert, and be wrong.
ARCHITECTURES = frozenset(
    {"llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "phi3", "gemma", "gemma3_text", "gpt2", "gpt_neox"}
)
_ROWS, _NEW, _OLD = 2, 3, 4  # sizes of the traced example; a size of 1 would become a constant


@dataclass(frozen=True)
class Converted:
    """A converted model.

    Args:
        directory: its files.
        context: longest sequence it takes, tokens.
        end_ids: tokens that end an answer, as the model says.
        token_bytes: keys and values of one token.
        spells_tokens: the tokenizer was converted too, so answers can be restricted to a JSON schema.
        held: keeps the directory. None: something else does.
        compression: compression of the weights. NNCF leaves layers in int8 that int4 does not suit, so a small model
            that is requested in int4 may have none.
    """

    directory: Path
    context: int
    end_ids: tuple[int, ...]
    token_bytes: int
    spells_tokens: bool
    held: Held | None = None
    compression: str = "none"

    @classmethod
    def load(cls, directory: Path) -> "Converted":
        """The converted model in a directory."""
        facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
        spells_tokens = (directory / _DETOKENIZER).is_file()
        return cls(
            directory,
            facts["context"],
            tuple(facts["end_ids"]),
            facts["token_bytes"],
            spells_tokens,
            compression=facts["compression"],
        )


def refusal(directory: Path) -> str | None:
    """The reason why the model in a directory cannot be converted. None: it can."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    architecture = config.get("model_type")
    return None if architecture in ARCHITECTURES else f"OpenVINO's engine does not know the architecture {architecture}"


def converted(directory: Path, digest: str, compression: str, *, cache: Path, threads: int) -> Converted:
    """The converted model; converts it now if this node does not have it yet.

    Args:
        directory: the bundle's files.
        digest: the bundle's digest.
        compression: compression of the weights: `none`, `int8`, `int4`.
        cache: directory of converted models.
        threads: number of threads that convert.

    Raises:
        DeploymentError: the conversion failed.
    """
    held = node_cache(cache).get(
        f"{digest}-{compression}-{_method()}", lambda partial: _convert_apart(directory, partial, compression, threads)
    )
    return replace(Converted.load(held.path), held=held)


def _convert_apart(directory: Path, target: Path, compression: str, threads: int) -> None:
    """Convert a model in a process of its own."""
    command = module_command("maas_ray.serve.engines.openvino.conversion", str(directory), str(target), compression)
    # The end of the pipe that stays here closes when this process ends, and that ends the conversion.
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
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        raise DeploymentError(
            f"the conversion for OpenVINO failed (exit status {done.returncode}): {last}", code="conversion_failed"
        )


def _method() -> str:
    """A digest of this code and of OpenVINO's version: results of other versions are not reused."""
    source = Path(__file__).read_bytes()
    return hashlib.sha256(source + version("openvino").encode()).hexdigest()[:8]


def main() -> None:
    """Convert the model in a directory. Arguments: the directory, the target, the compression."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except Exception as error:
        traceback.print_exc()
        print(" ".join(f"{type(error).__name__}: {error}".split())[:500])  # the last line becomes the error message
        sys.exit(1)


def _end_with_parent() -> None:
    os.read(0, 1)  # standard input closes; `sys.stdin` would hold a lock when this process ends by itself
    os._exit(1)


def _convert(directory: Path, target: Path, compression: str) -> None:
    # Both OpenVINO and NNCF report their use to their makers unless this package is missing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino
    import torch
    from openvino import Type
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
            # Smaller groups share a scale if a layer's width is not a multiple of the usual 128.
            smaller = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
            mode = nncf.CompressWeightsMode.INT4_ASYM
            converted = nncf.compress_weights(converted, mode=mode, advanced_parameters=smaller)
            if not any(node.get_element_type() in (Type.u4, Type.i4) for node in converted.get_ops()):
                compression = "int8"
    facts["compression"] = compression
    openvino.save_model(converted, target / MODEL, compress_to_fp16=False)
    if _convert_tokenizer(directory, target):
        _save_trial_model(config.vocab_size, target / TRIAL_MODEL)
    shutil.copy(directory / "config.json", target)
    (target / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _save_trial_model(tokens: int, target: Path) -> None:
    import openvino
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width = 16
    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.no_grad():
        network = _stateful(LlamaForCausalLM(config).eval(), 1, 1, width)
    target.mkdir()
    openvino.save_model(network, target / MODEL)


def _convert_tokenizer(directory: Path, target: Path) -> bool:
    """Convert the tokenizer: OpenVINO needs the characters of each token for JSON schemas. False: it is impossible."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        parts = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception:  # a kind of tokenizer that OpenVINO does not know
        traceback.print_exc()
        return False
    for part, name in zip(parts, (_TOKENIZER, _DETOKENIZER), strict=True):
        openvino.save_model(part, target / name)
    return True


def _stateful(model: Any, layers: int, heads: int, width: int) -> Any:
    """The model in the form that OpenVINO GenAI accepts: named inputs, and the key-value cache as its state."""
    import numpy as np
    import openvino
    import torch
    from openvino import PartialShape, Type, opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    if model.dtype in (torch.bfloat16, torch.float16):
        # Weights stay in 16 bits, which halves the memory; computation is in 32 bits.
        from openvino.frontend.pytorch import patch_model

        patch_model.__dict__["__make_16bit_traceable"](model)
    past = [torch.zeros(_ROWS, heads, _OLD, width) for _ in range(2 * layers)]
    positions = torch.arange(_OLD, _OLD + _NEW).expand(_ROWS, _NEW).contiguous()
    ones = torch.ones(_ROWS, _OLD + _NEW, dtype=torch.long)
    network = openvino.convert_model(_wrapped(model), example_input=(ones[:, :_NEW], ones, positions, *past))

    tensors = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    caches = {f"past_key_values.{tensor}": f"present.{tensor}" for tensor in tensors}
    for port, name in zip(network.inputs, ["input_ids", "attention_mask", "position_ids", *caches], strict=True):
        port.get_tensor().set_names({name})
        node = port.get_node()
        node.set_friendly_name(name)
        if name.startswith("past"):
            node.set_partial_shape(PartialShape([-1, heads, -1, width]))
        else:
            node.set_partial_shape(PartialShape([-1, -1]))
            node.set_element_type(Type.i64)
    for port, name in zip(network.outputs, ["logits", *caches.values()], strict=True):
        port.get_tensor().set_names({name})
    _shift_scores(network)
    network.validate_nodes_and_infer_types()

    # GenAI reorders the rows of a cache with the input `beam_idx`.
    beam = opset13.parameter(PartialShape([-1]), Type.i32, name="beam_idx")
    beam.output(0).get_tensor().add_names({"beam_idx"})
    network.add_parameters([beam])
    for name in caches:
        port = network.input(name)
        readers = port.get_target_inputs()
        gathered = opset13.gather(port, beam, opset13.constant(0, dtype=np.int64))
        for reader in readers:
            reader.replace_source_output(gathered.output(0))
    network.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(network, caches)

    # Each state is empty at first: [rows, heads, 0, width].
    shape = opset13.shape_of(network.input("input_ids"), output_type="i64")
    rows = opset13.gather(shape, opset13.constant(np.array([0])), opset13.constant(0))
    for node in network.get_ops():
        if node.get_type_name() == "ReadValue":
            empty = opset13.concat([rows, opset13.constant(np.array([heads, 0, width]))], axis=0)
            zero = opset13.constant(0.0, dtype=node.get_output_element_type(0))
            node.set_arguments([opset13.broadcast(zero, empty)])
    network.validate_nodes_and_infer_types()
    return network


def _shift_scores(network: Any) -> None:
    """Shift the scores of each row so that the lowest is 4, which changes no probability.

    OpenVINO GenAI subtracts a penalty from scores that are 0 or more, and adds it to scores below 0, which would make
    tokens that the answer already contains likelier. The lowest score is 4 because both penalties are at most 2. GenAI
    selects the rows that it needs behind the last multiplication, and allows one addition there.
    """
    import numpy as np
    from openvino import opset13

    result = network.output("logits").get_node().input(0)
    scores = result.get_source_output()
    lowest = opset13.reduce_min(scores, opset13.constant(np.array([-1])), keep_dims=True)
    shifted = opset13.add(scores, opset13.subtract(opset13.constant(np.float32(4)), lowest))
    result.replace_source_output(shifted.output(0))
    shifted.output(0).get_tensor().set_names({"logits"})


def _wrapped(model: Any) -> Any:
    """The model with its cache as ordinary arguments and results."""
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
                layer = (
                    DynamicLayer()
                )  # filled directly, because its first update would concatenate with an empty tensor
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
    """The attention mask, [rows, 1, new, old + new].

    OpenVINO's paged attention replaces the mask by its own. It recognises a sliding window only by exactly these
    operations. In any other form the window is lost without an error, and every token attends to all earlier ones.
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
