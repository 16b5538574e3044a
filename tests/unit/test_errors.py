"""Errors cross processes whole, and say what a person needs."""

import pickle
import re
from typing import Any

import cloudpickle
import pytest

from maas_ray import errors
from maas_ray.errors import MaasError

ARGUMENTS: dict[type[MaasError], dict[str, Any]] = {
    errors.InvalidError: {"code": "unknown_encoding", "message": "unknown encoding 'utf-9'"},
    errors.SpecError: {"source": "train.yaml", "problems": ["line 2: epochs: is missing; add it.", "b"]},
    errors.NonFiniteLossError: {"step": 7, "loss": float("inf"), "advice": "Lower the learning rate."},
    errors.RequestError: {"message": "wrong", "param": "top_p", "code": "invalid_value", "status": 422},
    errors.ModelNotFoundError: {"model": "a", "served": ["b", "c"]},
    errors.RequestRefusedError: {"why": "no token is left to choose from"},
    errors.PromptTooLongError: {"prompt_tokens": 90, "max_tokens": 20, "context": 100, "param": "max_tokens"},
}


def tree(base: type[MaasError] = MaasError) -> list[type[MaasError]]:
    return [base, *(found for child in base.__subclasses__() for found in tree(child))]


def make(cls: type[MaasError]) -> MaasError:
    return cls(**ARGUMENTS.get(cls, {"message": f"a {cls.__name__} happened."}))


@pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=lambda module: module.__name__)
@pytest.mark.parametrize("cls", tree(), ids=lambda cls: cls.__name__)
def test_every_error_survives_a_process_boundary(cls: type[MaasError], pickler: Any) -> None:
    error = make(cls)
    error.__notes__ = ["seen on rank 1"]

    copy = pickler.loads(pickler.dumps(error))

    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert copy.code == error.code


def test_the_codes_of_problems_survive_a_process_boundary() -> None:
    error = errors.SpecError("f.yaml", [errors.Problem("a: b", "unknown_encoding"), "c: d"], code="other")

    copy = pickle.loads(pickle.dumps(error))

    assert error.codes == copy.codes == ["unknown_encoding", "other"]
    assert [problem.code for problem in copy.problems] == ["unknown_encoding", "other"]


@pytest.mark.parametrize("cls", tree(), ids=lambda cls: cls.__name__)
def test_every_error_has_a_code_that_a_program_can_compare(cls: type[MaasError]) -> None:
    assert re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", str(make(cls).code))


def test_every_error_is_drawn_in_the_tree() -> None:
    assert errors.__doc__
    for cls in tree():
        assert f" {cls.__name__} " in errors.__doc__.replace("\n", " ")


@pytest.mark.parametrize("cls", [cls for cls in tree() if cls.__base__ is MaasError], ids=lambda cls: cls.__name__)
def test_each_branch_is_also_the_standard_error_a_caller_expects(cls: type[MaasError]) -> None:
    assert errors.__doc__
    [line] = [line for line in errors.__doc__.splitlines() if f"── {cls.__name__} " in line]
    standard = line.split("(")[1].split(")")[0]

    assert standard in [base.__name__ for base in cls.__mro__]


def test_an_os_error_keeps_its_message() -> None:
    # OSError's own __new__ and __str__ treat arguments in ways of their own.
    assert str(errors.CorruptError("bytes differ")) == "bytes differ"


def test_a_prompt_that_is_too_long_says_by_how_much() -> None:
    error = make(errors.PromptTooLongError)

    assert "100 tokens, but 110 were requested (90 in the prompt, 20 to generate)" in str(error)
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "max_tokens")  # type: ignore[attr-defined]
