"""How many pages of keys and values an engine gets. Knows nothing of any engine."""

from maas_ray.errors import DeploymentError

PAGE = 32
"""Tokens in a page; what OpenVINO takes on the CPU."""


def pages(token_bytes: int, context: int, max_requests: int, kv_cache_bytes: int) -> int:
    """Enough for `max_requests` full sequences, or as many as the memory allows.

    Args:
        token_bytes: keys and values of one token in all layers.
        context: longest sequence, tokens.
        max_requests: most sequences at once.
        kv_cache_bytes: the memory.

    Raises:
        DeploymentError: not even one full sequence fits.
    """
    sequence = -(-context // PAGE) + 1
    allowed = kv_cache_bytes // (PAGE * token_bytes)
    if allowed < sequence:
        raise DeploymentError(
            f"kv_cache_gb: {kv_cache_bytes / 1e9:g} GB hold {allowed * PAGE} tokens, less than one sequence of "
            f"{context}; this model needs {sequence * PAGE * token_bytes / 1e9:.2f} GB or more."
        )
    return min(allowed, sequence * max_requests)
