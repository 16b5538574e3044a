"""A JSON schema is compiled on trial before the engine sees it, for a limited time."""

import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from maas_ray.errors import RequestError
from maas_ray.serve.engines.openvino.conversion import Converted
from maas_ray.serve.engines.openvino.grammars import GrammarEngine
from maas_ray.serve.text.json_schema import check
from maas_ray.serve.text.types import GenerateRequest, Tokens
from tests.support.engines import request, run_all
from tests.support.errors import raises


class Engine:
    """Notes the schemas that reach it."""

    supports = frozenset({"json_schema"})

    def __init__(self) -> None:
        self.schemas: list[str | None] = []
        self.closed = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        self.schemas.append(request.json_schema)
        yield Tokens([1])

    def check(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def engine(model: Converted) -> Iterator[GrammarEngine]:
    engine = GrammarEngine(Engine(), model.directory, limit_s=0.5)
    yield engine
    engine.close()
    assert engine._helper is None


def optional(count: int) -> str:
    return check({"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(count)}})


def large() -> str:
    """Takes minutes, also with a small vocabulary."""
    arrays = {
        f"p{number}": {"type": "array", "items": {"type": "integer"}, "maxItems": 100 + number} for number in range(400)
    }
    return check({"type": "object", "properties": arrays, "required": list(arrays)})


def ask(engine: GrammarEngine, *schemas: str | None) -> list[list[int]]:
    return run_all(engine, [request([5], json_schema=schema) for schema in schemas])


def test_a_schema_that_compiles_in_time_reaches_the_engine(engine: GrammarEngine) -> None:
    assert ask(engine, optional(3), None, optional(4), optional(3)) == [[1]] * 4
    seen: Any = engine._engine
    assert sorted(seen.schemas, key=str) == sorted([optional(3), None, optional(4), optional(3)], key=str)


def test_a_schema_that_takes_too_long_is_refused_and_remembered(engine: GrammarEngine) -> None:
    seen: Any = engine._engine
    seen.schemas.clear()
    for _ in range(2):
        with raises(RequestError, "invalid_json_schema", "0.5 s") as caught:
            ask(engine, large())
        assert (caught.value.param, caught.value.status) == ("response_format", 400)
        assert engine._helper is None  # the kernel has ended it, and nobody needs another one for what is known
    assert ask(engine, optional(5)) == [[1]]  # by a new one
    assert seen.schemas == [optional(5)]


def test_a_process_that_ended_between_two_schemas_is_replaced(engine: GrammarEngine) -> None:
    assert ask(engine, optional(7)) == [[1]]
    assert engine._helper is not None
    engine._helper[0].kill()
    engine._helper[0].wait()
    assert ask(engine, optional(8)) == [[1]]


def test_a_schema_that_ends_new_processes_too_is_refused(
    engine: GrammarEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = GrammarEngine._begin

    def frail(self: GrammarEngine) -> Any:
        process, connection = begin(self)
        process.kill()
        process.wait()
        return process, connection

    engine._end()
    monkeypatch.setattr(GrammarEngine, "_begin", frail)
    with raises(RequestError, "invalid_json_schema", "-9"):
        ask(engine, optional(9))
    assert engine._helper is None


def test_a_schema_that_cannot_be_compiled_is_refused(engine: GrammarEngine) -> None:
    with raises(RequestError, "invalid_json_schema", "schema: "):
        ask(engine, json.dumps({"type": "foo"}))
    with raises(RequestError, "invalid_json_schema", "'tools'") as caught:
        run_all(engine, [request([5], json_schema=json.dumps({"type": "foo"}), schema_param="tools")])
    assert caught.value.param == "tools"
    assert ask(engine, optional(6)) == [[1]]
