"""The name of a log file says whose it is."""

import pytest

from maas_ray.views.logs import LogFile, _gateway, _replicas

FILES = [
    "serve/controller_22260.log",
    "serve/proxy_127.0.0.1.log",
    "serve/replica_maas-gateway_Gateway_hmqkwy76.log",
    "serve/replica_model-stdlib-lm-81af7f3e_Model_x8vw8sno.log",
    "serve/replica_model-stdlib-lm-2-81af7f3e_Model_abcdefgh.log",
    "serve/replica_model-under_score-00000000_Model_x8vw8sno.log",
    "serve/replica_maas-shared_Shared_a1b2c3d4.log",
]
SERVE = [("node", path) for path in FILES]


@pytest.mark.parametrize(
    ("application", "path"),
    [
        ("model-stdlib-lm-81af7f3e", FILES[3]),
        ("model-stdlib-lm-2-81af7f3e", FILES[4]),
        ("model-under_score-00000000", FILES[5]),
        ("maas-shared", FILES[6]),
    ],
)
def test_an_endpoint_has_the_logs_of_its_own_application_alone(application: str, path: str) -> None:
    [file] = _replicas(SERVE, {application})

    assert (file.path, file.label) == (path, f"replica {path[-12:-4]}")
    assert _replicas(SERVE, {"model-stdlib"}) == []


def test_the_gateway_has_the_logs_of_its_replicas_and_of_the_proxies() -> None:
    assert _gateway(SERVE) == [LogFile("node", FILES[2], "replica hmqkwy76"), LogFile("node", FILES[1], "proxy")]
