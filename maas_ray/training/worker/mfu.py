"""Model FLOPs utilisation, MFU: the share of a GPU's peak arithmetic that training uses (PaLM, 2022, appendix B)."""

import re
from typing import Any

# Dense 16-bit matrix FLOP/s, from NVIDIA's data sheets.
_PEAK = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
}
_PEAK_OF_CARDS = {("H100", "PCIe"): 756e12, ("H100", "NVL"): 835e12}


def peak_flops(device_name: str) -> float | None:
    """Dense 16-bit FLOP/s of a GPU by its CUDA name. None: unknown."""
    words = re.split(r"[^A-Za-z0-9]+", device_name)
    for (chip, form), peak in _PEAK_OF_CARDS.items():
        if chip in words and form in words:
            return peak
    return next((peak for chip, peak in _PEAK.items() if chip in words), None)


def flops_per_token(parameters: int, config: Any, length: int) -> float:
    """FLOPs that a decoder needs to train on one token, without recomputed activations.

    Args:
        parameters: parameters of the network.
        config: its Transformers configuration. None: attention is not counted.
        length: tokens in a sequence.
    """
    layers, width = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    return 6.0 * parameters + 12.0 * layers * width * length
