"""Replicas that answer HTTP themselves, as one gateway sees them: which to ask next, and which not."""

import random
import time
from collections.abc import Callable, Iterator, Mapping

from maas_ray.ray_private.serve import HttpReplica

RELAY = "relay"
"""The entry of a replica's metadata with the secret that gateways must send."""
_LEAVING_S = 2.0  # a replica that takes new options is away for a moment; one that stops still answers for 5 s
_UNREACHABLE_S = 10.0


class Replica:
    """One replica; see `api.relay.Upstream`."""

    def __init__(self, found: HttpReplica, secret: str) -> None:
        self.url, self.secret = f"http://{found.host}:{found.port}", secret
        self.in_flight = 0
        self.left_at = 0.0
        """When Serve took it off its list. 0: it is there."""
        self.avoided_until = 0.0
        """Until when no request goes there."""

    def avoid(self) -> None:
        """Choose this replica no more for a while."""
        self.avoided_until = time.monotonic() + _UNREACHABLE_S


class Replicas:
    """The replicas of one application.

    Serve takes a replica off its routers' lists while it gets new options, all replicas at once. So a replica that has
    left is still asked for a moment, unless it cannot be reached.

    Args:
        now: the replicas that Serve lists, by id; the same mapping for as long as they are the same.
    """

    def __init__(self, now: Callable[[], Mapping[str, HttpReplica]]) -> None:
        self._now = now
        self._listed: Mapping[str, HttpReplica] | None = None
        self._replicas: dict[str, Replica] = {}

    def choose(self, tried: set[str]) -> Replica | None:
        """The replica with the fewest requests of this gateway, except those whose `url` was tried. None: none."""
        self._update()
        fewest, chosen, equal = 0, None, 0
        for replica in self._askable():
            if replica.url in tried:
                continue
            if chosen is None or replica.in_flight < fewest:
                fewest, chosen, equal = replica.in_flight, replica, 1
            elif replica.in_flight == fewest:
                equal += 1
                if random.randrange(equal) == 0:  # noqa: S311  each of them with the same probability
                    chosen = replica
        return chosen

    def _askable(self) -> Iterator[Replica]:
        now = time.monotonic()
        for id_, replica in list(self._replicas.items()):
            if replica.left_at and now - replica.left_at > _LEAVING_S:
                del self._replicas[id_]
            elif now >= replica.avoided_until:
                yield replica

    def _update(self) -> None:
        listed = self._now()
        if listed is self._listed:
            return
        self._listed, now = listed, time.monotonic()
        for id_, found in listed.items():
            secret = found.metadata.get(RELAY)
            if secret and id_ not in self._replicas:
                self._replicas[id_] = Replica(found, secret)
        for id_, replica in self._replicas.items():
            replica.left_at = 0.0 if id_ in listed else replica.left_at or now
