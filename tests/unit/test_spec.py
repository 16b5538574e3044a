"""A wrong spec says everything that is wrong with it, where, and what to do."""

import pickle
from pathlib import Path
from typing import Annotated, Literal

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from maas_ray.errors import DataError, NotFoundError, SpecError
from maas_ray.spec import Name, Spec, digest_of
from maas_ray.spec.problems import closest
from tests.support.errors import raises


class Small(Spec):
    type: Literal["small"] = "small"
    layers: int = Field(2, ge=1)
    heads: int = 4

    @model_validator(mode="after")
    def _even(self) -> "Small":
        if self.heads % 2:
            raise ValueError(f"heads ({self.heads}) must be even.")
        return self


class Large(Spec):
    type: Literal["large"] = "large"
    path: str


class Source(Spec):
    format: Literal["text"] = "text"
    path: str


class Example(Spec):
    model: Name
    network: Annotated[Small | Large, Field(discriminator="type")] = Small()
    sources: list[Source] = []
    sizes: int | tuple[int, int] | None = None
    tokenizer: Small | str = "words"
    rate: float = Field(0.5, gt=0, lt=1)
    mode: Literal["fast", "slow"] = "fast"


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        Example.from_text(text, source="f.yaml", overrides=overrides)
    assert caught.value.source == "f.yaml"
    return caught.value.problems


def test_a_file_is_read_with_defaults_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("model: a\nnetwork: {type: large, path: x}\nsizes: [3, 4]\n")

    spec = Example.from_yaml(path)

    assert spec == Example(model="a", network=Large(path="x"), sizes=(3, 4))
    assert spec.document()["network"] == {"type": "large", "path": "x"}
    assert Example.parse(spec.document()) == spec


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Example(model="a").model = "b"  # type: ignore[misc]


def test_all_problems_of_a_file_are_reported_at_once_with_line_field_value_and_fix() -> None:
    text = """\
    model: ../x
    network:
      type: small
      layers: 0
      head: 4
    sources:
      - {path: a}
      - {paht: b}
    rate: 2
    mode: medium
    """

    assert problems(text) == [
        "line 1: model: must match the pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$' (found '../x')",
        "line 4: network.layers: input should be greater than or equal to 1 (found 0)",
        "line 5: network.head: there is no such field; did you mean `heads`?",
        "line 8: sources[1].path: is missing; add it.",
        "line 8: sources[1].paht: there is no such field; did you mean `path`?",
        "line 9: rate: input should be less than 1 (found 2)",
        "line 10: mode: input should be 'fast' or 'slow' (found 'medium')",
    ]


class Crossed(Spec):
    """As `TrainSpec`: fields, and rules across them."""

    network: Small = Small()
    least: int = Field(1, ge=1)
    most: int = Field(4, ge=1)
    steps: int
    warmup: int = 0
    sources: list[Source] = []

    @model_validator(mode="after")
    def _agree(self) -> "Crossed":
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) is above most ({self.most}).")
        if self.warmup > self.steps:
            raise ValueError(f"warmup ({self.warmup}) is above steps ({self.steps}).")
        return self


CLASH = "least (5) is above most (4)."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps: 1\nleast: 5\nwarmup: x", ["line 3: warmup: input should be a valid integer", CLASH]),
        ("steps: 1\nleast: 5\nwarm: 1", ["line 3: warm: there is no such field; did you mean `warmup`?", CLASH]),
        ("steps: 1\nleast: 5\nnetwork: {heads: 3}", ["line 3: network: heads (3) must be even.", CLASH]),
        (
            "steps: 1\nleast: 5\nnetwork: {heads: 3, layers: 0}",
            ["line 3: network.layers: input should be greater", "line 3: network: heads (3) must be even.", CLASH],
        ),
        (
            "steps: 1\nleast: 5\nsources: [{path: a}, {path: 1}, {}]",
            ["line 3: sources[1].path: ", "line 3: sources[2]", CLASH],
        ),
        # A wrong value hides a contradiction, because the intended value is unknown.
        ("steps: 1\nleast: 5\nmost: x", ["line 3: most: input should be a valid integer"]),
        ("steps: 1\nleast: 5\nmots: 9", ["line 3: mots: there is no such field; did you mean `most`?"]),
        ("least: 5\nwarmup: x", ["steps: is missing; add it.", "line 2: warmup: "]),
        ("steps: x\nleast: 5", ["line 1: steps: input should be a valid integer"]),
    ],
)
def test_a_contradiction_is_reported_together_with_wrong_fields(text: str, expected: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        Crossed.from_text(text, source="f.yaml")

    found = caught.value.problems
    assert len(found) == len(expected), found
    for problem, start in zip(sorted(found), sorted(expected), strict=True):
        assert problem.startswith(start)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model: a\nxyzzy: 1", "line 2: xyzzy: there is no such field; known fields: mode, model, network, "),
        ("model: a\nnetwork: {layers: 3}", "line 2: network.type: is missing; choose one of small, large."),
        ("model: a\nnetwork: {type: smal}", "line 2: network.type: 'smal' is not known; choose one of small, large. D"),
        ("model: a\nnetwork: small", "line 2: network: holds 'small'; write it as `field: value` lines. Fields: "),
        ("model: a\nnetwork:", "line 2: network: holds None; write it as `field: value` lines. Fields: heads, "),
        ("model: a\nnetwork: {type: small, heads: 3}", "line 2: network: heads (3) must be even."),
        ("model: a\ntokenizer: {layer: 3}", "line 2: tokenizer.layer: there is no such field; did you mean `layers`?"),
        ("model: a\nsizes: [1]", "line 2: sizes: input should be a valid integer (found [1])"),
        ("model: a\nsizes: x", "line 2: sizes: input should be a valid integer or a valid list (found 'x')"),
        ("model: a\nmodel: b", "line 2, column 1: not valid YAML: duplicate key 'model'; keep one"),
        ("model: [", "line 1, column 9: not valid YAML: "),
        ("model: a\n---\nmodel: b", "line 2, column 1: not valid YAML: but found another document"),
        ("- model", "holds ['model'] at the top; write `field: value` lines."),
        ("", "model: is missing; add it."),
        ("model: &a [*a]", "is nested too deeply, or an alias contains itself; write the values out."),
        ("model: " + "[" * 5000, "is nested too deeply, or an alias contains itself; write the values out."),
        ("model: !!python/object/apply:os.system [ls]", "line 1, column 8: not valid YAML: could not determine a con"),
    ],
)
def test_each_mistake_has_its_message(text: str, problem: str) -> None:
    assert problems(text)[0].startswith(problem)


def test_only_a_likely_name_is_suggested() -> None:
    assert closest("warmup", ["epochs", "warmup_steps"]) == "warmup_steps"
    assert closest("epoch", ["epochs", "warmup_steps"]) == "epochs"
    assert closest("markdown", ["arrow", "text"]) is None


@pytest.mark.parametrize(
    ("text", "override", "codes"),
    [
        ("model: a\nxyzzy: 1\nrate: 2", "", ["less_than", "extra_forbidden"]),
        ("rate: 0.5", "", ["missing"]),
        ("model: a\nmodel: b", "", ["duplicate_key"]),
        ("a: [", "", ["invalid_yaml"]),
        ("- a", "", ["not_a_mapping"]),
        ("&a [*a]", "", ["nested_too_deeply"]),
        ("model: a", "rate", ["invalid_override"]),
        ("model: a\nnetwork: {type: smal}", "", ["union_tag_invalid"]),
    ],
)
def test_each_mistake_has_a_code(text: str, override: str, codes: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        Example.from_text(text, source="f.yaml", overrides=[override] if override else [])

    assert caught.value.codes == codes


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("model: é".encode("latin-1"))

    with raises(SpecError, "unreadable", "none.yaml", "No such file or directory"):
        Example.from_yaml(tmp_path / "none.yaml")
    with raises(SpecError, "not_utf8", "latin.yaml", "byte 7"):
        Example.from_yaml(tmp_path / "latin.yaml")


def test_yaml_merge_keys_work() -> None:
    text = "model: a\nsources:\n  - &first {path: x}\n  - {<<: *first, format: text}\n"

    assert Example.from_text(text, source="f").sources == [Source(path="x"), Source(path="x")]


# --- overrides -------------------------------------------------------------------------------------


def test_overrides_are_laid_over_the_file_in_order() -> None:
    text = "model: a\nnetwork: {type: small}\nsources: [{path: x}, {path: y}]\n"
    overrides = ["network.layers=5", "sources.1.path=z", "sizes=[1, 2]", "rate=1e-3", "model=b", "model=c"]

    spec = Example.from_text(text, source="f", overrides=iter(overrides))

    assert spec.network == Small(layers=5)
    assert [source.path for source in spec.sources] == ["x", "z"]
    assert (spec.sizes, spec.rate, spec.model) == ((1, 2), 0.001, "c")


def test_an_override_may_hold_an_equals_sign_and_a_whole_mapping() -> None:
    spec = Example.from_text("model: a", source="f", overrides=["network={type: large, path: a=b}"])

    assert spec.network == Large(path="a=b")


def test_wrong_overrides_are_reported_all_at_once() -> None:
    found = problems("model: a\nsources: [{path: x}]", "rate", "=3", "model.x=1", "sources.4.path=y", "mode=[")

    assert found == [
        "--set rate: write it as `field=value` or `field.inner=value`.",
        "--set =3: write it as `field=value` or `field.inner=value`.",
        "--set model.x=1: `model` holds 'a', which has no field 'x'.",
        "--set sources.4.path=y: `sources` is a list of length 1; '4' is not an index of it.",
        "--set mode=[: the value is line 1, column 2: not valid YAML: "
        "expected the node content, but found '<stream end>'",
    ]


def test_a_problem_of_an_override_does_not_name_a_line_of_the_file() -> None:
    assert problems("model: a\nrate: 0.1", "rate=7") == ["rate: input should be less than 1 (found 7)"]
    assert problems("model: a\nsources:\n- {path: b}", "sources.0.path=1") == [
        "sources[0].path: input should be a valid string (found 1)"
    ]
    assert problems("model: a\nnetwork: {type: small, heads: 3}", "network.layers=7") == [
        "line 2: network: heads (3) must be even."
    ]


def test_overrides_leave_the_parsed_values_types_alone() -> None:
    found = problems("model: 2026-01-01", "rate=0.1")

    assert found == ["line 1: model: input should be a valid string (found datetime.date(2026, 1, 1))"]


# --- problems that only a verb finds ------------------------------------------------------------------

TEXT = "model: a\nnetwork:\n  type: small\nsources:\n  - {path: x}\n  - {path: y}\n"


def test_refuse_reports_a_problem_as_parsing_does() -> None:
    spec = Example.from_text(TEXT, source="f.yaml", overrides=["rate=0.1"])

    error = spec.refuse("network.type", "'small' is too small", "network.type: is no good")
    assert error.source == "f.yaml"
    assert error.problems == ["line 3: network.type: 'small' is too small", "line 3: network.type: is no good"]
    assert spec.where("sources[1].path") == "f.yaml, line 6: sources[1].path"
    assert spec.where("network.heads") == "f.yaml, line 2: network.heads"
    assert spec.where("rate") == "f.yaml: rate"
    assert spec.where("mode") == "f.yaml: mode"


def test_refuse_names_the_field_of_a_spec_made_in_python() -> None:
    for spec in (Example(model="a"), Example.parse({"model": "a"})):
        assert str(spec.refuse("model", "'a' is taken")) == "Example: 1 problem\n  model: 'a' is taken"
        assert spec.where("model") == "Example: model"


@pytest.mark.parametrize("kind", [NotFoundError, DataError])
def test_errors_inside_at_name_the_file_and_the_line(kind: type[NotFoundError | DataError]) -> None:
    spec = Example.from_text(TEXT, source="f.yaml")

    with raises(kind, "unknown_model", "f.yaml, line 1: model: ", "'a'"), spec.at("model"):
        raise kind("unknown model 'a'", code="unknown_model")
    with raises(SpecError, "invalid_name", "f.yaml: ", "line 1: model: 'a'"), spec.at("model"):
        raise SpecError("model", ["'a' is not a name"], code="invalid_name")
    with pytest.raises(KeyError), spec.at("model"):
        raise KeyError("a")


@pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=lambda module: module.__name__)
def test_the_origin_of_a_spec_is_pickled_and_does_not_affect_equality(pickler) -> None:
    read = Source.from_text("# a comment\npath: x", source="f.yaml")
    made = Source(path="x")

    assert read == made
    assert hash(read) == hash(made)
    assert read.model_dump() == made.model_dump()
    assert repr(read) == repr(made)
    assert pickler.loads(pickler.dumps(read)).where("path") == "f.yaml, line 2: path"
    assert read.model_copy(update={"path": "y"}).where("path") == "f.yaml, line 2: path"
    with pytest.raises(ValidationError, match="frozen"):
        read.path = "y"  # type: ignore[misc]


# --- names and digests -----------------------------------------------------------------------------


@given(st.text(max_size=130))
def test_a_name_is_one_safe_part_of_a_path(name: str) -> None:
    try:
        Example.parse({"model": name})
    except SpecError:
        return
    assert name.isascii()
    assert 1 <= len(name) <= 128
    assert not set(name) & set("/\\ \0\n'\"%")
    assert name not in (".", "..")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_a_digest_does_not_depend_on_the_order_of_keys(document: dict[str, object]) -> None:
    assert digest_of(document) == digest_of(dict(reversed(document.items())))


def test_digests_differ_where_documents_do() -> None:
    documents = [{}, {"a": 1}, {"a": "1"}, {"a": [1]}, {"a": None}, {"b": 1}, [], ["a", 1], "a", 1]

    assert len({digest_of(document) for document in documents}) == len(documents)
