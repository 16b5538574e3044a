"""Text generation engines: token ids in, a stream of token ids out.

An engine knows nothing of text, HTTP or Serve. All requests in flight share its batch; each is computed
as if it were alone: neither its neighbours nor their arrival change its tokens.
"""

from collections.abc import AsyncGenerator
from typing import Protocol

from maas_ray.serve.text.types import GenerateRequest, Tokens


class Engine(Protocol):
    """Continuous batching over one model.

    Attributes:
        supports: names of the `SamplingParams` that it honours beside temperature and top_p, which every engine
            does; and `json_schema`. It receives no request that needs others.
    """

    supports: frozenset[str]

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        """New tokens, in order, a few at a time; the last may be one of `end_ids`. Closing it cancels the request.

        Raises:
            RequestRefusedError: the engine refuses this request.
            DeploymentError: this request failed; or the engine has died, and `check` raises too.
        """

    def check(self) -> None:
        """Return if the engine works.

        Raises:
            DeploymentError: the engine has died; gives the cause.
        """

    def close(self) -> None:
        """Stop, and free the model's memory."""
