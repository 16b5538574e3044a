"""`maas spec` prints every field of a spec, and what it prints can be read back."""

import re
from typing import Any

import jsonschema
import pytest
import yaml

from maas_ray import DeploySpec, EvaluateSpec, PredictSpec, PrepareSpec, TrainSpec
from maas_ray.data.cleaning import STEPS
from maas_ray.data.sources import FORMATS
from maas_ray.errors import SpecError
from maas_ray.spec import Spec
from maas_ray.spec.document import read
from maas_ray.spec.fields import models_in, tag_of
from maas_ray.spec.meanings import meaning
from maas_ray.spec.template import template
from maas_ray.tasks import TASKS
from tests.support import ROOT
from tests.support.errors import raises

SPECS: list[type[Spec]] = [PrepareSpec, TrainSpec, EvaluateSpec, PredictSpec, DeploySpec]
TYPES = [
    *((PrepareSpec, "task", tag_of(task.spec_type)) for task in TASKS),
    *((PrepareSpec, "sources", tag_of(source)) for source in FORMATS),
    *((PrepareSpec, "clean", tag_of(step)) for step in STEPS),
    *((TrainSpec, "network", tag_of(network)) for network in dict.fromkeys(n for t in TASKS for n in t.networks)),
]


def uncommented(text: str) -> str:
    """A template with every field set to its default."""
    return re.sub(r"(?m)^( *)#(?! )", r"\1", text)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_every_field_is_shown_with_its_meaning_and_its_default(spec: type[Spec]) -> None:
    text = template(spec, {}, "title")
    document = yaml.safe_load(uncommented(text))

    assert list(document) == list(spec.model_fields)
    for name, info in spec.model_fields.items():
        assert meaning(spec, name), f"{spec.__name__}.{name} has no docstring"
        first_words = " ".join(meaning(spec, name).split()[:3]).replace("None:", "null:")
        assert f"# {first_words}" in text
        if not info.is_required() and not models_in(info.annotation):
            default = info.get_default(call_default_factory=True, validated_data={})
            assert document[name] == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_only_required_fields_are_set(spec: type[Spec]) -> None:
    document = yaml.safe_load(template(spec, {}, "title"))

    assert list(document) == [name for name, info in spec.model_fields.items() if info.is_required()]


@pytest.mark.parametrize(("spec", "field", "tag"), TYPES)
def test_each_type_of_a_field_can_be_shown(spec: type[Spec], field: str, tag: str) -> None:
    text = template(spec, {field: tag}, "title")
    document: dict[str, Any] = yaml.safe_load(uncommented(text))
    (model,) = [model for model in models_in(spec.model_fields[field].annotation) if tag_of(model) == tag]

    shown = document[field][0] if isinstance(document[field], list) else document[field]
    assert list(shown) == list(model.model_fields)


def test_a_filled_in_template_is_a_spec() -> None:
    text = template(PrepareSpec, {"task": "text-generation", "sources": "text"}, "title")

    spec = PrepareSpec.from_text(text, source="template")

    assert spec.dataset == "DATASET"
    assert spec.document() == PrepareSpec.parse(yaml.safe_load(text)).document()


def test_an_unknown_choice_names_the_choices() -> None:
    with raises(SpecError, "unknown_type", "task", "'text'", "text-generation"):
        template(PrepareSpec, {"task": "text"}, "title")
    with raises(SpecError, "unknown_field", "seed", "task, sources"):
        template(PrepareSpec, {"seed": "1"}, "title")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_the_schema_accepts_the_specs_in_jobs_and_refuses_unknown_fields(spec: type[Spec]) -> None:
    schema = spec.model_json_schema()
    validator = jsonschema.validators.validator_for(schema)(schema)
    verb = spec.__name__.removesuffix("Spec").lower()

    jobs = sorted((ROOT / "jobs/specs").glob(f"*{verb}.yaml"))
    assert jobs
    for path in jobs:
        document, _ = read(path.read_text(), path.name)
        assert [error.message for error in validator.iter_errors(document)] == [], path.name
        assert list(validator.iter_errors({**document, "no_such_field": 1}))


def test_the_schema_says_what_fields_mean_also_below_other_fields() -> None:
    schema = PrepareSpec.model_json_schema()

    assert schema["properties"]["seed"]["description"] == meaning(PrepareSpec, "seed") != ""
    near = schema["$defs"]["NearDuplicates"]["properties"]["shingle"]["description"]
    assert near.startswith("Number of words in a shingle; of characters in a script without spaces.")


def test_fields_of_a_class_in_a_function_have_meanings() -> None:
    class Other(Spec):
        field: int = 0

    class Own(Other):
        """A user's."""

        field: int = 1
        """Its
        meaning."""
        silent: int = 2

    assert [meaning(Own, "field"), meaning(Own, "silent"), meaning(Other, "field")] == ["Its\nmeaning.", "", ""]


@pytest.mark.parametrize("spec", [PrepareSpec, TrainSpec])
def test_the_schema_accepts_the_users_own_types_and_no_misspelled_ones(spec: type[Spec]) -> None:
    schema = spec.model_json_schema()
    validator = jsonschema.validators.validator_for(schema)(schema)

    def valid(type_of_the_field: str) -> bool:
        document = {"dataset": "d", "model": "m", "network": {"type": type_of_the_field}}
        if spec is PrepareSpec:
            step, source = {"step": type_of_the_field}, {"format": "text", "path": "x"}
            document = {"dataset": "d", "task": {"type": type_of_the_field}, "clean": [step], "sources": [source]}
        return bool(validator.is_valid(document))

    assert valid("my_package.module:Class")
    assert not valid("no-such-type")
