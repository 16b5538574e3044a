"""The gateway's own state, without Serve."""

import pytest

from maas_ray.cluster.haproxy import HARD_STOP
from maas_ray.serve.gateway import _cut_answers


@pytest.mark.parametrize(
    ("environment", "longest", "cut"),
    [
        ({"RAY_SERVE_ENABLE_HA_PROXY": "1"}, 300, True),  # Serve's default is 120 s
        ({"RAY_SERVE_ENABLE_HA_PROXY": "1"}, 60, False),
        ({"RAY_SERVE_ENABLE_HA_PROXY": "1", HARD_STOP: "3660"}, 3600, False),
        ({"RAY_SERVE_ENABLE_HA_PROXY": "1", HARD_STOP: "300"}, 300, True),
        ({}, 3600, False),
    ],
)
def test_a_cluster_that_cuts_the_longest_answers_is_reported(
    environment: dict[str, str], longest: float, cut: bool
) -> None:
    assert bool(_cut_answers(longest, environment)) == cut
