"""The caller of a request, determined once where the request enters: in the HTTP middleware or the gRPC server.

It goes with every call of `ModelCalls` down to the replica. What depends on who calls (access, quotas, usage) can
therefore be decided behind that one interface, for all APIs.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """A user or a program that sends requests.

    Args:
        id: identifies it among those of its kind.
        kind: how it was recognised, such as `anonymous`.
    """

    id: str
    kind: str


ANONYMOUS = Caller(id="", kind="anonymous")


def authenticate(headers: Mapping[str, str]) -> Caller:
    """The caller of a request. Without API keys, every caller is anonymous.

    Args:
        headers: HTTP headers or gRPC metadata, by name in lower case.
    """
    return ANONYMOUS
