"""Defaults of specs of serving are what parsing gives, so that a stored spec has the digest that it had."""

import pytest

from maas_ray.serve.spec import DeploySpec, SharedArgs
from maas_ray.spec import Spec, digest_of


@pytest.mark.parametrize("spec", [DeploySpec(version="m/1"), SharedArgs()])
def test_a_spec_that_was_stored_has_the_same_digest(spec: Spec) -> None:
    assert digest_of(type(spec).parse(spec.document()).document()) == digest_of(spec.document())
