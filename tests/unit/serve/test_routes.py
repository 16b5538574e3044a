"""A route has targets; one is picked for each request; routes of earlier versions are still read."""

from collections import Counter

import pytest

from maas_ray.errors import SpecError
from maas_ray.serve.caller import ANONYMOUS
from maas_ray.serve.routes import Route, Target, from_config, pick, to_config
from tests.support.errors import raises

FIELDS = {"name": "lm", "kind": "generate", "task": "text-generation", "version": "lm/3", "digest": "ab" * 32}
FIELDS |= {"created": 1, "inputs": (), "outputs": (), "timeout_s": 30}


def target(application: str, **changes) -> dict:
    return {"application": application, "version": "lm/3", **changes}


def route(*targets: dict) -> Route:
    return Route.parse(FIELDS | {"targets": targets})


def test_a_route_of_one_application_is_read_as_it_was_stored_before() -> None:
    stored = FIELDS | {"application": "model-lm", "shared": "id", "engine": "openvino", "adapters": ()}
    (read,) = from_config({"routes": [stored | {"adapter": None}]})
    assert read.targets == (Target(application="model-lm", version="lm/3", shared="id"),)
    assert read == Route.parse(stored)
    assert from_config(to_config((read,))) == (read,)
    with raises(SpecError, "extra_forbidden", "application"):
        Route.parse(stored | {"targets": [target("model-lm")]})
    with raises(SpecError, "missing", "targets"):
        Route.parse(FIELDS)


def test_adapters_have_the_targets_of_their_model() -> None:
    adapter = {"name": "fr", "version": "fr/1", "uri": "/fr", "digest": "cd" * 32, "created": 2}
    whole = Route.parse(FIELDS | {"targets": [target("model-lm")], "adapters": [adapter]})
    base, french = whole.expanded()
    assert (french.name, french.version, french.targets) == ("lm:fr", "fr/1", base.targets)


def test_the_only_target_is_picked() -> None:
    only = route(target("model-lm"))
    assert pick(only, ANONYMOUS) == only.target
    assert pick(route(target("model-lm"), target("model-new", weight=0)), ANONYMOUS).application == "model-lm"


def test_targets_are_picked_by_weight_and_shadows_never() -> None:
    canary = route(
        target("model-lm", weight=3), target("model-new", weight=1), target("model-next", weight=9, mode="shadow")
    )
    picked = Counter(pick(canary, ANONYMOUS).application for _ in range(4000))
    assert set(picked) == {"model-lm", "model-new"}
    assert picked["model-new"] / 4000 == pytest.approx(0.25, abs=0.05)
    assert canary.applications == {"model-lm", "model-new", "model-next"}
    assert canary.with_target(application="x").targets == (
        canary.target.model_copy(update={"application": "x"}),
        *canary.targets[1:],
    )


def test_fields_of_a_newer_version_are_ignored_by_a_gateway_but_not_in_a_record() -> None:
    newer = FIELDS | {"targets": [target("model-lm", region="eu")], "budget": 7}
    (read,) = from_config({"routes": [newer], "grpc": None})
    assert read == Route.parse(FIELDS | {"targets": [target("model-lm")]})
    with raises(SpecError, "extra_forbidden"):
        Route.parse(newer)
