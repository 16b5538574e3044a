"""Commands about models, aliases and endpoints."""

import json
from pathlib import Path

import pytest

from maas_ray import cluster
from tests.support.terminal import Run, fails


def test_models_lists_versions_with_aliases_and_the_metric_that_counts(run: Run) -> None:
    status, out, _ = run("models")
    lines = out.splitlines()

    assert status == 0
    assert lines[0].split() == ["MODEL", "VERSION", "ALIASES", "TASK", "METRICS", "CREATED"]
    assert lines[1].split()[:3] == ["lm", "2", "text-generation"]
    assert lines[2].split()[:4] == ["lm", "1", "champion", "text-generation"]
    assert "perplexity 5 (validation), 11 (test)" in lines[1] or "perplexity 11 (test), 5 (validation)" in lines[1]


def test_models_of_a_name_shows_lineage(run: Run) -> None:
    _, text, _ = run("models", "lm")
    [second, first] = json.loads(run("models", "lm", "--json")[1])

    assert "lm/2\n  aliases   none" in text
    assert f"dataset   words ({'f' * 16})" in text
    assert text.count("  spec\n    model: lm\n    network: {type: llama, layers: 2}\n    alias: null\nlm/1\n") == 1
    assert text.count("spec") == 1
    assert (second["reference"], first["aliases"]) == ("lm/2", ["champion"])
    assert first["lineage"]["run"] == "run-1"
    assert first["lineage"]["spec"]["network"] == {"type": "llama", "layers": 1}
    assert first["metrics"]["validation/perplexity"] == 10.0


def test_an_alias_moves(run: Run) -> None:
    assert run("alias", "lm", "2", "champion") == (0, "lm@champion is now lm/2\n", "")
    assert [one["aliases"] for one in json.loads(run("models", "lm", "--json")[1])] == [["champion"], []]
    assert fails(run("alias", "lm", "7", "champion"), "lm", "7", "2, 1")


def test_an_alias_moves_only_if_the_gate_passes(run: Run) -> None:
    status, out, err = run("alias", "lm", "2", "champion", "--if", "validation/perplexity > champion")
    assert (status, out) == (1, "")
    for value in ("lm@champion", "lm/2 has 5", "lm/1 has 10", "validation/perplexity > champion", "60 rows"):
        assert value in err
    assert run("promote", "lm/2", "champion", "--if", "f1 >= champion")[0] == 1
    assert run("alias", "lm", "2", "champion", "--if", "f1 ~ champion")[0] == 2
    status, out, err = run("promote", "lm/2", "champion", "--if", "validation/perplexity <= champion * 0.6")
    gate, moved = out.splitlines()
    assert (status, err) == (0, "")
    for value in ("validation/perplexity <= champion * 0.6", "lm/2 has 5", "lm/1 has 10", "6", "60 rows"):
        assert value in gate
    assert moved == "lm@champion is now lm/2; no endpoint was deployed from it"


def test_one_version_is_shown_with_its_evaluations(run: Run) -> None:
    status, out, _ = run("models", "lm@champion")

    assert status == 0
    assert out.startswith("lm/1\n  aliases   champion\n")
    assert [one["evaluations"] for one in json.loads(run("models", "lm/1", "--json")[1])] == [[]]
    assert fails(run("models", "lm/7"), "lm", "7", "2, 1")


def test_promoting_without_endpoints_moves_the_alias(run: Run) -> None:
    said = "lm@champion is now lm/2; no endpoint was deployed from it\n"
    assert run("promote", "lm/2", "champion") == (0, said, "")
    assert [one["aliases"] for one in json.loads(run("models", "lm", "--json")[1])] == [["champion"], []]
    assert fails(run("promote", "lm/7", "champion"), "lm", "7", "2, 1")


def test_a_difference_ends_with_status_1(run: Run, tmp_path: Path) -> None:
    spec = tmp_path / "deploy.yaml"
    spec.write_text("version: lm@champion\n")

    status, out, err = run("diff", str(spec))

    assert (status, err) == (1, "")
    assert out.splitlines()[1].split() == ["lm", "missing", "lm/1", "nothing"]
    assert run("diff", str(spec), "--set", "version=lm/7")[0] == 1


@pytest.mark.parametrize("alias", ["latest", "v1", "a b", "../x", ""])
def test_an_alias_that_cannot_be_used_is_refused(run: Run, alias: str) -> None:
    for command in (("alias", "lm", "1", alias), ("promote", "lm/1", alias)):
        status, _, err = run(*command)

        assert status == 2
        assert repr(alias) in err.splitlines()[0]


@pytest.mark.parametrize("reference", ["lm@", "lm/x", "lm@a@b", "@champion", ""])
def test_an_invalid_reference_is_not_deployed(run: Run, reference: str) -> None:
    status, _, err = run("deploy", reference)

    assert status == 2
    assert err.startswith(f"maas deploy {reference}: 1 problem\n  version: ")


@pytest.mark.parametrize(
    ("task", "sample", "says"),
    [
        (
            "image-classification",
            {"image": [[0, 255]]},
            "  curl http://h:1/v1/models/m/predict -d '{\"image\": [[0, 255]]}'\n"
            "  curl http://h:1/v1/models/m/predict -F file=@PATH\n",
        ),
        (
            "tabular-regression",
            {"it's": 0},
            """  curl http://h:1/v1/models/m/predict -d '{"it'"'"'s": 0}'\n""",
        ),
        ("text-generation", {"prompt": "Hello"}, "  curl http://h:1/v1/completions -H"),
    ],
)
def test_a_deployed_endpoint_is_shown_with_a_command_to_try(
    task: str, sample: dict, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from maas_ray.serve.deployment.verbs import Endpoint
    from maas_ray.views.endpoints import show_deployed

    show_deployed(Endpoint("m", "m/1", task, "", "serving", 1, {}, False, "http://h:1", "", None, sample))

    assert says in capsys.readouterr().out


def test_status_as_json_has_every_version_and_no_cluster(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(cluster, "find", lambda settings: None)

    document = json.loads(run("status", "--json")[1])

    assert (document["cluster"], document["endpoints"]) == (None, [])
    assert [version["reference"] for version in document["models"]] == ["lm/2", "lm/1"]
