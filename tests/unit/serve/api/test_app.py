"""The gateway's application: a client's mistake or a bug gets an answer in the words of the API that was called."""

import json

import pytest

from maas_ray.serve.routes import from_config, to_config
from tests.support.echo import Call, complete
from tests.support.models import route


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"model": "echo", "prompt": NaN}', b"\xff\xfe", b"null", b"[1]", b'"x"', b"[" * 1500]
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v2/models/sums/infer"])
def test_broken_json_is_refused_in_the_shape_of_each_api(call: Call, path: str, body: bytes) -> None:
    response = call("POST", path, content=body)
    assert response.status_code == 400
    shape = response.json()["error"]
    assert isinstance(shape, str) if path.startswith("/v2") else shape["type"] == "invalid_request_error"


def test_overload_says_when_to_retry(call: Call) -> None:
    response = complete(call, prompt="full")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_a_bug_is_a_500_without_details(call: Call) -> None:
    response = call(
        "POST", "/v1/completions", json={"model": "echo", "prompt": "bug"}, headers={"x-request-id": "req-7"}
    )
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "req-7" in error["message"]
    assert "secret" not in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v2/models/sums/infer", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/a/b", 404),
        ("GET", "/v2/x", 404),
        ("POST", "/v2/models/sums/versions/3/x", 404),
    ],
)
def test_wrong_methods_and_paths_are_refused(call: Call, method: str, path: str, status: int) -> None:
    response = call(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert isinstance(error, str) if path.startswith("/v2") else error["message"]
    if status == 405:
        assert response.headers["allow"]


def test_a_routing_table_survives_json() -> None:
    table = (route("b", "predict"), route("a", "generate"))
    config = json.loads(json.dumps(to_config(table)))
    assert from_config(config) == (table[1], table[0])
    assert to_config(table[::-1]) == config
