"""Private names of Ray Serve LLM: its vLLM engine takes whole chats, and only the client inside it takes tokens."""

from typing import Any


def vllm_engine(config: Any) -> Any:
    """Ray's wrapper of vLLM for an `LLMConfig`; it must be started."""
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    return VLLMEngine(config)


def client_of(engine: Any) -> Any:
    """VLLM's own client inside a started `vllm_engine`."""
    return engine._engine_client
