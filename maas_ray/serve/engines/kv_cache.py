"""The size of an engine's key-value cache, in pages. Knows nothing of any engine."""

from maas_ray.errors import DeploymentError

PAGE = 32
"""Tokens in a page, as OpenVINO requires on the CPU."""


def pages(token_bytes: int, context: int, max_requests: int, kv_cache_bytes: int) -> int:
    """Enough pages for `max_requests` full sequences, or as many as the memory allows.

    Args:
        token_bytes: bytes of the keys and values of one token in all layers.
        context: longest sequence, tokens.
        max_requests: most sequences at once.
        kv_cache_bytes: the memory for the cache.

    Raises:
        DeploymentError: one full sequence does not fit.
    """
    sequence = -(-context // PAGE) + 1
    allowed = kv_cache_bytes // (PAGE * token_bytes)
    if allowed < sequence:
        raise DeploymentError(
            f"kv_cache_gb: {kv_cache_bytes / 1e9:g} GB hold {allowed * PAGE} tokens, less than one sequence of "
            f"{context}. Set it to {sequence * PAGE * token_bytes / 1e9:.2f} or more.",
            code="kv_cache_too_small",
        )
    return min(allowed, sequence * max_requests)
